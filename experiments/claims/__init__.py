"""The claims, one module each; `CLAIMS` has them in the order of the page."""

from dvt.config.files import did_you_mean
from dvt.errors import ConfigError
from experiments.claim import Claim
from experiments.claims import beyond, dynamic_vs_static, exit_rule, item_size, reuse, threshold_search, two_exits
from experiments.claims.dynamic_vs_static import Rivals

STATICS = ("static_3", "static_6", "static_9")

CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        dynamic_vs_static.claim(
            "dynamic_vs_static",
            "One dynamic model against three static ones",
            Rivals("baseline", STATICS, (("no_reuse", 0), ("no_reuse", 1), ("no_reuse", 2))),
        ),
        dynamic_vs_static.claim(
            "staged",
            "The first exit trained first",
            Rivals("staged", STATICS, (("first_exit", 0), ("no_reuse", 1), ("no_reuse", 2)), "baseline"),
        ),
        reuse.CLAIM,
        exit_rule.CLAIM,
        threshold_search.CLAIM,
        item_size.CLAIM,
        two_exits.CLAIM,
        beyond.CLAIM,
        dynamic_vs_static.claim(
            "dynamic_vs_static_emoji",
            "The same on coloured drawings",
            Rivals("emoji", ("emoji_static_3", "emoji_static_6", "emoji_static_9")),
        ),
        dynamic_vs_static.claim("smoke", "A trial of the machinery", Rivals("smoke", ("smoke_static",)), trial=True),
    )
}


def find_claim(name: str) -> Claim:
    """The claim of that name. Raises ConfigError, naming the nearest one."""
    if name not in CLAIMS:
        known = ", ".join(CLAIMS)
        raise ConfigError(f"there is no experiment {name!r}{did_you_mean(name, list(CLAIMS))}; there are {known}")
    return CLAIMS[name]
