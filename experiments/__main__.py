"""The command behind scripts/run_experiments.sh: what is to be done, in which order, and what is done already."""

import sys
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dvt.cli.support import Parser, run_command
from dvt.safe_files import explained, replacing
from dvt.value_checks import PATH, bounds
from experiments import emoji, page
from experiments.claim import Claim
from experiments.claims import CLAIMS, find_claim
from experiments.page import RESULTS
from experiments.processes import run_all
from experiments.recipes import RECIPES, ROOT
from experiments.runs import Store, log

WORK = ROOT / "runs" / "experiments"
SPEED_MINUTES = 1.0
EMOJI_FOLDER = ROOT / "runs" / "emoji"


@dataclass
class Options:
    """Run experiments; scripts/run_experiments.sh explains the options.

    Args:
        names: Experiments; by default all but trials.
        seeds: Seeds of the runs.
        jobs: Runs at once.
        results: Folder of the results.
        work: Folder of the trained models.
        emoji: Archive of the emoji pictures.
        page: Write docs/results.md from the results, and run nothing.
        list: List what there is to do.
    """

    names: list[str] | None = None
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata=bounds(0))
    jobs: int = field(default=1, metadata=bounds(1))
    results: Path = field(default=RESULTS, metadata=PATH)
    work: Path = field(default=WORK, metadata=PATH)
    emoji: Path | None = field(default=None, metadata=PATH)
    page: bool = False
    list: bool = False


def main(argv: list[str]) -> int:
    arguments, _ = Parser("run_experiments.sh", Options, words=["names"], log_level="info").parse(argv)
    seeds = list(dict.fromkeys(arguments.seeds))
    names = arguments.names or []
    claims = [find_claim(name) for name in names] or [each for each in CLAIMS.values() if not each.trial]
    store = Store(arguments.results.resolve(), arguments.work.resolve())
    if arguments.list:
        print(plan(claims, seeds, store))
        return 0
    if not arguments.page:
        for seed in seeds:
            code = _run_seed(claims, seed, store, arguments.jobs, arguments.emoji)
            if code:
                return code
            for claim in claims:
                conclude(claim, seeds, store)
    if store.results == RESULTS.resolve():
        with explained(page.PAGE), replacing(page.PAGE) as written:
            written.write_text(page.render(store.results), encoding="utf-8")
        log.info("wrote %s", page.PAGE)
    return 0


def plan(claims: Sequence[Claim], seeds: Sequence[int], store: Store) -> str:
    """The runs that the claims need, whether they are done, and how long the others take."""
    lines = [f"{'run':<24} {'seeds done':<12} {'left':<10} {'minutes each':>12}  what"]
    total = 0.0
    for name in _recipes_of(claims):
        recipe = RECIPES[name]
        left = [seed for seed in seeds if name in _left(claims, seed, store)]
        total += recipe.minutes * len(left)
        done = ",".join(str(seed) for seed in seeds if seed not in left) or "-"
        todo = ",".join(map(str, left)) or "-"
        lines.append(f"{name:<24} {done:<12} {todo:<10} {recipe.minutes:>12.1f}  {recipe.about}")
    timed = sum(not _is_timed(claim, seed, store) for claim in claims if claim.timed for seed in seeds)
    total += SPEED_MINUTES * timed
    lines.append(f"{timed} measurements of speed, {SPEED_MINUTES:.0f} minute each")
    lines.append(f"left to do: about {total:.0f} minutes, one run at a time; see --jobs")
    lines += ["", "experiments:"]
    lines += [f"  {claim.name:<24} {claim.title}" for claim in claims]
    return "\n".join(lines)


def conclude(claim: Claim, seeds: Sequence[int], store: Store) -> bool:
    """Writes JSON and figure of a claim from the seeds for which all its runs are there; whether there were any."""
    runs = store.complete(claim.recipes, seeds)
    first = runs[claim.recipes[0]]
    if not first:
        return False
    timings = [store.load_timing(claim.name, claim.timed, run.seed) for run in first if claim.timed]
    result = claim.compute(runs, [timing for timing in timings if timing])
    every = [run for each in runs.values() for run in each]
    facts = {
        "claim": claim.name,
        "title": claim.title,
        "seeds": [run.seed for run in first],
        "date": max(run.record["date"] for run in every),
        "machines": list(dict.fromkeys(page.describe(run.record["machine"]) for run in every)),
        "runs": {run.recipe: run.record["identity"] for run in every},
    }
    store.write_json(store.results / f"{claim.name}.json", facts | result)
    path = store.results / f"{claim.name}.png"
    with explained(path), replacing(path) as written:
        written.write_bytes(claim.draw(result))
    log.info("wrote %s and its figure, from the seeds %s", path.with_suffix(".json"), facts["seeds"])
    return True


def _run_seed(claims: Sequence[Claim], seed: int, store: Store, jobs: int, archive: Path | None) -> int:
    """Everything that is left of one seed; the exit code of the first process that failed, else 0."""
    names, left = _recipes_of(claims), _left(claims, seed, store)
    # MindSpore gives the memory of compiled graphs back only when its process ends: one per run.
    for place in range(1, 1 + max(len(RECIPES[name].chain) for name in names)):
        at_once = [name for name in names if len(RECIPES[name].chain) == place]
        if code := run_all(_trainings(at_once, left, seed, store, archive), jobs, ROOT):
            return code
    return run_all(_timings(claims, seed, store), 1, ROOT)


def _left(claims: Sequence[Claim], seed: int, store: Store) -> list[str]:
    """The runs that are still to be made: those of the claims, and those whose weights they start from."""
    left, asked, starts = [], {name for claim in claims for name in claim.recipes}, set()
    for name in reversed(_recipes_of(claims)):
        done = store.is_done(RECIPES[name], seed)
        if (name in asked and not done) or (name in starts and not (done and store.has_weights([name], seed))):
            left.append(name)
            starts.add(RECIPES[name].start)
    return left


def _trainings(
    names: Sequence[str], left: Container[str], seed: int, store: Store, archive: Path | None
) -> Iterator[list[str]]:
    """The commands of those of these runs that are left."""
    for name in names:
        recipe = RECIPES[name]
        if name not in left:
            log.info("%s, seed %d: done before", name, seed)
            continue
        if recipe.base == "emoji":
            emoji.prepare(EMOJI_FOLDER, archive)
        log.info("%s, seed %d: about %.1f minutes", name, seed, recipe.minutes)
        yield _command("train", name, seed, store)


def _timings(claims: Sequence[Claim], seed: int, store: Store) -> Iterator[list[str]]:
    """The commands of the measurements of speed that are left."""
    for claim in claims:
        if not claim.timed or _is_timed(claim, seed, store):
            continue
        if store.has_weights(claim.timed, seed):
            yield _command("speed", claim.name, seed, store)
            continue
        log.warning(
            "%s, seed %d: speeds are not measured, as the trained models are not in %s; to train them again, "
            "remove %s from %s",
            claim.name,
            seed,
            store.work,
            ", ".join(f"{name}-{seed}.*" for name in claim.timed),
            store.results / "runs",
        )


def _is_timed(claim: Claim, seed: int, store: Store) -> bool:
    return store.load_timing(claim.name, claim.timed, seed) is not None


def _command(what: str, name: str, seed: int, store: Store) -> list[str]:
    return [sys.executable, "-m", "experiments.one", what, name, str(seed), str(store.results), str(store.work)]


def _recipes_of(claims: Sequence[Claim]) -> list[str]:
    """Each after those that it starts from."""
    return list(dict.fromkeys(each for claim in claims for name in claim.recipes for each in RECIPES[name].chain))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
