"""A ladder of models from the linear classifier upwards: what each step gains and where each model breaks."""
