"""Guards: checks before the first step that stop a run which could only fail silently.

    guard("sft", recipe.guards, sft_guards(tokenizer, model, ...))

`run.py` runs them and stops the stage, `by_stage.py` says which a stage has; the others hold the checks, grouped by
what they look at: `template.py`, `data.py`, `models.py`, `rewards.py`, `policy.py`. docs/guards.md lists them all.
"""
