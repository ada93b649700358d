"""The built-in games: rules, observations and scripted opponents as compiled kernels, one file a game."""
