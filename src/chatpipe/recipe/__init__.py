"""Recipes: one YAML file with the settings of all stages. `load_recipe` reads one into a checked `Recipe`."""

from chatpipe.recipe.loading import Resolved, find_recipe, load_recipe, packaged_recipes
from chatpipe.recipe.schema import TRAINING_STAGES, Recipe

__all__ = ["TRAINING_STAGES", "Recipe", "Resolved", "find_recipe", "load_recipe", "packaged_recipes"]
