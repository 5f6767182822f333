"""What draws say: ArviZ export, effective sample sizes, R-hat."""
