"""The text of `--help`: the commands, and the options and keys of each."""

from nemo_tvkd import __version__
from nemo_tvkd.config.table import COMMANDS


def usage() -> str:
    """The text of `nemo-tvkd --help`."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {command.what}" for name, command in COMMANDS.items())
    return (
        f"nemo-tvkd {__version__}: preference distillation on NeMo and Megatron-Core\n\n"
        f"usage: nemo-tvkd COMMAND [key=value ...] [--cfg job] [--help]\n\ncommands:\n{commands}\n\n"
        "exit codes: 0 done; 2 a mistake in configuration, data or path (one line says which);\n"
        "85 stopped by a signal with a checkpoint saved, run the same command again; else a crash\n"
        "(NEMO_TVKD_DEBUG=1 shows tracebacks and the libraries' own logs)"
    )


def command_usage(name: str) -> str:
    """The text of `nemo-tvkd COMMAND --help`."""
    command = COMMANDS[name]
    parts = [f"nemo-tvkd {name}: {command.what}", f"example: {command.example}", command.notes.rstrip()]
    parts += [options(name), _methods() if name == "train" else "", _keys(name)]
    return "\n\n".join(part for part in parts if part).rstrip()


def options(name: str) -> str:
    """A command's options, a line each."""
    shown = {f"{option.flag} {option.value}".rstrip(): option.text for option in COMMANDS[name].options}
    return "\n".join(f"{flag:18}  {text}" for flag, text in shown.items())


def _methods() -> str:
    from nemo_tvkd.losses.methods import METHODS

    width = max(map(len, METHODS))
    lines = (f"  {name:{width}}  {method.summary}" for name, method in METHODS.items())
    return "methods:\n" + "\n".join(lines)


def _keys(name: str) -> str:
    from omegaconf import OmegaConf

    from nemo_tvkd.config.compose import choices, compose
    from nemo_tvkd.config.documented import documented

    command = COMMANDS[name]
    if not command.config:
        return ""
    if command.takes == "recipe":
        named = "\n".join(f"{group}={'|'.join(choices(group))}" for group in ("recipe", "cluster"))
        return f"{named}\n\nkeys and defaults:\n{documented(OmegaConf.structured(command.schema), command.schema)}"
    return f"keys and defaults:\n{documented(compose(name, []), command.schema)}"
