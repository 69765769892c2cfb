"""The four stages, one screen each: parent -> data -> guards -> trainer -> train -> evaluate -> verdict -> save."""
