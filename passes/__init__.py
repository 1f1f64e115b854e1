"""The built-in passes: a plugin like any other, registered through the ``graphopt`` entry point group."""
