"""Recipes: one YAML file that says what every stage does. `load_recipe` reads one, `Recipe` is what it holds."""

from chatpipe.recipe.loading import Resolved, find_recipe, load_recipe, packaged_recipes
from chatpipe.recipe.schema import TRAINING_STAGES, Recipe

__all__ = ["TRAINING_STAGES", "Recipe", "Resolved", "find_recipe", "load_recipe", "packaged_recipes"]
