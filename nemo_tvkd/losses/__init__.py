"""The mathematics: losses, pure functions of tensors, and the table of methods with what each of them reads."""
