"""Every key: its default, its meaning, its choices and bounds. No torch."""
