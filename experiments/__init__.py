"""The paper's claims, measured again on small real data with this package: `bash scripts/run_experiments.sh`.

A *recipe* (`recipes`) is a configuration of one training; a *run* (`runs`, `training`) is a recipe with a seed, and
leaves one JSON; a *claim* (`claims/`) is computed from the runs of a few recipes, and leaves one JSON and one figure;
`page` makes docs/results.md of the claims. What is done already is not done again.
"""
