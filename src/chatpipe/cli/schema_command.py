"""`chatpipe schema`: the JSON Schema of recipes, for editors."""


def schema() -> None:
    """Print the JSON Schema of recipes, for editors (`# yaml-language-server: $schema=FILE`)."""
    import json

    from chatpipe import console
    from chatpipe.recipe import Recipe

    console.data(json.dumps(Recipe.model_json_schema(), indent=2))
