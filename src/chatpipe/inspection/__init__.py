"""Looking without training: rows as a model will see them, a recipe before it runs, a model folder on any data."""
