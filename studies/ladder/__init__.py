"""From the linear classifier upwards, a step at a time: what each step gains and where each model breaks."""
