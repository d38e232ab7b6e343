"""Every claim measured, in one run, as ratios of variants that take turns."""
