"""Recipes: one YAML file that says what every stage does. `load_recipe` reads one, `Recipe` is what it holds."""

from chatpipe.recipe.loading import Resolved, find_recipe, load_recipe, packaged_recipes
from chatpipe.recipe.schema import STAGES, Recipe

__all__ = ["STAGES", "Recipe", "Resolved", "find_recipe", "load_recipe", "packaged_recipes"]
