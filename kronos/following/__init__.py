"""An index that follows a space: never trusted, only followed."""
