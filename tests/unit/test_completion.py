"""Shell completion: what is offered, how soon, and that bash, zsh and fish take it."""

import os
import shutil
import statistics
import sys
import time
from pathlib import Path

import pytest
from bad_input import run_python
from terminal import run_in_terminal

from nemo_tvkd.__main__ import main
from nemo_tvkd.commands.completion import SHELLS, candidates

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")


def offered(*words: str) -> list[str]:
    """Whole words for the last of `words`."""
    return candidates(words[:-1], words[-1])


def test_commands_and_options() -> None:
    assert offered("ex") == ["export-hf"]
    assert {"train", "score", "data", "completion", "--help", "--version"} <= set(offered(""))
    assert offered("train", "--") == ["--cfg", "--from", "--help"]
    assert offered("submit", "--") == ["--cfg", "--config-dir", "--dry-run", "--from", "--help", "--here"]
    assert offered("evaluate", "--cfg", "") == ["job"]
    assert offered("bench", "s") == ["score", "score.", "step", "student."]
    assert offered("data", "") == ["check"]
    assert offered("data", "check", "rows=p") == ["rows=pairs"]
    assert offered("completion", "") == ["bash", "fish", "zsh"]
    assert offered("unknown", "") == []


def test_keys_a_part_at_a_time() -> None:
    assert offered("train", "") == [
        *("algorithm.", "algorithm=", "data.", "logger.", "optim.", "oracle.", "parallel.", "reference.", "student."),
        *("teacher.", "trainer."),
    ]
    assert offered("train", "trainer.max") == ["trainer.max_epochs=", "trainer.max_steps="]
    assert offered("train", "trainer.max_steps=3", "trainer.max") == ["trainer.max_epochs="]  # once is enough
    assert offered("train", "logger.") == ["logger.tensorboard=", "logger.wandb."]
    assert "logger.wandb.mode=" in offered("train", "logger.wandb.")
    assert offered("export-hf", "") == ["checkpoint=", "kind=", "output="]


def test_keys_follow_the_algorithm() -> None:
    tvkd = ["algorithm.alpha=", "algorithm.beta=", "algorithm.shaping.", "algorithm.use_reference="]
    assert offered("train", "algorithm.") == tvkd
    assert offered("train", "algorithm=tvkd", "algorithm.") == tvkd
    assert offered("train", "algorithm=dpo", "algorithm.") == ["algorithm.beta=", "algorithm.label_smoothing="]
    assert offered("train", "algorithm=sft", "algorithm.") == []
    assert offered("train", "algorithm=wrong", "algorithm.") == tvkd


def test_values() -> None:
    assert offered("train", "algorithm=d") == ["algorithm=dpo", "algorithm=drdo"]
    assert offered("train", "optim.schedule=") == [f"optim.schedule={s}" for s in ("constant", "cosine", "linear")]
    assert offered("train", "data.shuffle=") == ["data.shuffle=false", "data.shuffle=true"]
    assert offered("train", "logger.wandb.mode=of") == ["logger.wandb.mode=offline"]
    assert offered("train", "algorithm=drdo", "algorithm.contrast=p") == ["algorithm.contrast=product"]
    assert offered("score", "score.what=[value,l") == ["score.what=[value,logprob"]
    assert offered("score", "score.value_kind=[max,so") == ["score.value_kind=[max,soft_value"]
    assert offered("bench", "bench.part=v") == ["bench.part=vocab"]
    assert offered("train", "trainer.max_steps=") == []


def test_recipes_and_their_stages(tmp_path: Path) -> None:
    recipe = "recipe=tvkd-llama-8b-1b"
    assert offered("submit", "recipe=tvkd-l") == ["recipe=tvkd-llama-8b-1b", "recipe=tvkd-llama-8b-3b"]
    assert "cluster=local" in offered("submit", "cluster=")
    assert offered("submit", recipe, "teacher") == ["teacher_dpo.", "teacher_dpo=", "teacher_sft.", "teacher_sft="]
    assert offered("submit", recipe, "train.algorithm.a") == ["train.algorithm.alpha="]
    assert offered("submit", recipe, "teacher_dpo.algorithm.") == [
        *("teacher_dpo.algorithm.beta=", "teacher_dpo.algorithm.label_smoothing="),
    ]
    assert offered("submit", recipe, "score.score.value_st") == ["score.score.value_storage="]
    assert offered("submit", recipe, "train.optim.schedule=co") == [
        *("train.optim.schedule=constant", "train.optim.schedule=cosine"),
    ]
    assert offered("submit", recipe, "train.cluster.gpu_d") == ["train.cluster.gpu_directive="]
    assert offered("submit", recipe, "--from", "tea") == ["teacher_dpo", "teacher_sft"]
    assert offered("doctor", recipe, "cluster.container.runtime=a") == ["cluster.container.runtime=apptainer"]
    assert offered("submit", "--here", "") == []

    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text("stages:\n  first: {command: evaluate}\n")
    mine = ("--config-dir", str(tmp_path))
    assert "recipe=mine" in offered("submit", *mine, "recipe=")
    assert offered("submit", *mine, "recipe=mine", "first.beta") == ["first.beta="]
    (tmp_path / "recipe" / "mine.yaml").write_text("stages: [broken\n")
    assert offered("submit", *mine, "recipe=mine", "first.") == []


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs").mkdir()
    for name in ("pairs/a.jsonl", "pairs/b.jsonl", "pa.jsonl", ".hidden", "my file.jsonl"):
        (tmp_path / name).write_text("")
    assert offered("train", "data.train=pa") == ["data.train=pa.jsonl", "data.train=pairs/"]
    assert offered("train", "data.train=[pa.jsonl,pairs/") == [
        *("data.train=[pa.jsonl,pairs/a.jsonl", "data.train=[pa.jsonl,pairs/b.jsonl"),
    ]
    assert offered("train", "--from", "") == ["pairs/"]
    assert offered("status", "p") == ["pa.jsonl", "pairs/"]
    assert offered("data", "check", "my") == ["my file.jsonl"]
    assert offered("train", "student.path=.h") == ["student.path=.hidden"]
    assert offered("train", "student.path=nowhere/") == []
    assert offered("train", "data.chat_template=p") == [
        *("data.chat_template=pa.jsonl", "data.chat_template=pairs/", "data.chat_template=plain"),
    ]


def test_the_script_of_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in SHELLS:
        assert main(["completion", shell]) == 0
        assert "nemo-tvkd" in capsys.readouterr().out
    for words in ([], ["tcsh"], ["bash", "zsh"]):
        assert main(["completion", *words]) == 2
        assert capsys.readouterr().err.startswith("nemo-tvkd: completion takes one of bash, zsh, fish, and prints ")
    assert main(["completion", "--help"]) == 0
    assert 'eval "$(nemo-tvkd completion bash)"' in capsys.readouterr().out


def test_an_answer_is_quick_and_light(tmp_path: Path) -> None:
    line = "nemo-tvkd submit recipe=tvkd-llama-8b-1b train.trainer.max_"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": " "}
    asked["_ARGCOMPLETE_STDOUT_FILENAME"] = str(tmp_path / "words")
    program = (
        f"import sys, os, argcomplete\nos.environ |= {asked!r}\nfrom nemo_tvkd.__main__ import main\n"
        "argcomplete.autocomplete.__init__.__globals__['os']._exit = sys.exit\n"
        "try:\n    main([])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'nemo', 'transformers', 'hydra', 'numpy', 'omegaconf'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    took = []
    for _ in range(3):
        start = time.perf_counter()
        done = run_python("-c", program)
        took.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        answer = (tmp_path / "words").read_text()
        assert answer.split() == ["train.trainer.max_epochs=", "train.trainer.max_steps="]
    assert statistics.median(took) < 0.7, took  # 0.1 s on an idle machine


PROMPT = "at-your-service "
STARTS = {
    "bash": (".bashrc", f"PS1='{PROMPT}'\n", ["bash", "--noprofile", "--rcfile", ".bashrc", "-i"]),
    "zsh": (
        ".zshrc",  # keys that are typed too soon are to complete, too
        f"autoload -U compinit; compinit -u -D; zstyle ':completion:*' insert-tab false; PS1='{PROMPT}'\n",
        ["zsh", "-i"],
    ),
    "fish": (
        ".config/fish/config.fish",
        f"set fish_greeting; function fish_prompt; printf '{PROMPT}'; end\n",
        ["fish", "-i"],
    ),
}


@pytest.mark.parametrize("shell", STARTS)
def test_a_real_shell(shell: str, tmp_path: Path) -> None:
    """What is typed, TAB and all, becomes the arguments of a command (a stand-in that writes them down)."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    file, start, command = STARTS[shell]
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(start + SHELLS[shell].partition("#")[0] + "\n")
    seen = tmp_path / "seen"
    program = tmp_path / "bin" / "nemo-tvkd"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\n[ -n "$_ARGCOMPLETE" ] || [ "$1" = completion ] && exec "{sys.executable}" -m nemo_tvkd "$@"\n'
        f'printf "%s\\n" "$@" > {seen}\n'
    )
    program.chmod(0o755)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "pairs.jsonl").write_text("")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "BASH"))},
        **{"PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "ZDOTDIR": str(tmp_path)},
        "TERM": "xterm",
    }
    typed = "nemo-tvkd tra\toptim.sch\tcos\tdata.train=fol\tpai\tlogger.w\tmo\tof\t\nexit\n"
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        _, written = run_in_terminal(
            command, environment, 200, ready=lambda text: PROMPT in text, keys=typed.encode(), timeout=60
        )
    finally:
        os.chdir(before)
    assert seen.exists(), written
    assert seen.read_text().split() == [
        *("train", "optim.schedule=cosine", "data.train=folder/pairs.jsonl", "logger.wandb.mode=offline"),
    ], written
