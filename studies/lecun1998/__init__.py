"""Every system of LeCun et al. 1998, section III: figure 9 measured again."""
