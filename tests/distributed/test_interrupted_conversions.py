"""Conversions that were interrupted or failed leave nothing behind that counts; finished imports are reused."""

import json
import shutil
from pathlib import Path

from conversions import ONE, Sources, assert_same_weights, export, other_files
from rank_pool import RankPool
from training import import_checkpoint


def test_an_interrupted_import_is_redone(pool: RankPool, sources: Sources, tmp_path: Path) -> None:
    source, complete = sources("llama fp32 tied")
    stale = tmp_path / ".nemo.incomplete"
    shutil.copytree(complete, stale)
    shutil.rmtree(stale / "context")
    (stale / "weights" / "__9_9.distcp").write_bytes(b"junk")
    (stale / "context" / "hf").mkdir(parents=True)
    (stale / "context" / "hf" / "junk.json").write_text("{}")
    pool.run(ONE, import_checkpoint, str(source), str(tmp_path / "nemo"))
    assert not stale.exists()
    names = lambda folder: sorted(str(f.relative_to(folder)) for f in folder.rglob("*"))  # noqa: E731
    assert names(tmp_path / "nemo") == names(complete)
    assert_same_weights(export(pool, tmp_path / "nemo", tmp_path / "exported"), source)


def test_an_interrupted_export_is_redone(pool: RankPool, sources: Sources, tmp_path: Path) -> None:
    source, checkpoint = sources("llama fp32 tied")
    stale = tmp_path / ".exported.incomplete"
    stale.mkdir()
    (stale / "model-00009-of-00009.safetensors").write_bytes(b"junk")
    exported = export(pool, checkpoint, tmp_path / "exported")
    assert not stale.exists()
    assert other_files(exported) == other_files(source)
    assert_same_weights(exported, source)


def failing_import(source: str, output: str) -> str:
    """Task: an import that fails; how."""
    try:
        import_checkpoint(source, output)
    except Exception as error:
        return type(error).__name__
    return ""


def test_a_failed_import_leaves_no_checkpoint(pool: RankPool, sources: Sources, tmp_path: Path) -> None:
    source, _ = sources("llama fp32 tied")
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert pool.run(ONE, failing_import, str(broken), str(tmp_path / "nemo"))[0]
    assert not (tmp_path / "nemo").exists()
    (broken / "model.safetensors").write_bytes(weights)
    pool.run(ONE, import_checkpoint, str(broken), str(tmp_path / "nemo"))
    assert_same_weights(export(pool, tmp_path / "nemo", tmp_path / "exported"), source)


def cached_imports(sources: list[str], cache: str) -> list[str]:
    """Task: what `train` makes of Hugging Face paths, with the import done here rather than in a process of its own."""
    from nemo_tvkd.checkpoints.hf import find_checkpoint
    from nemo_tvkd.models import conversion as checkpoints

    original = checkpoints._import_in_subprocess, checkpoints.import_folder
    checkpoints._import_in_subprocess = lambda source, output, tokenizer: checkpoints.import_hf(source, output)
    checkpoints.import_folder = lambda: Path(cache)
    try:
        wanted = {path: (find_checkpoint(path, "student.path"), "") for path in sources}
        return [str(checkpoint.path) for checkpoint in checkpoints.as_nemo(wanted).values()]
    finally:
        checkpoints._import_in_subprocess, checkpoints.import_folder = original


def test_an_import_is_reused_until_the_source_changes(pool: RankPool, sources: Sources, tmp_path: Path) -> None:
    """Its config.json included: a template or a rope edited after the first run must not be ignored in silence."""
    source = tmp_path / "model"
    shutil.copytree(sources("llama fp32 tied")[0], source)
    arguments = ([str(source)], str(tmp_path / "cache"))
    first = pool.run(ONE, cached_imports, *arguments)[0][0]
    made = Path(first).stat().st_mtime_ns
    assert pool.run(ONE, cached_imports, *arguments)[0] == [first]
    assert Path(first).stat().st_mtime_ns == made
    config = json.loads((source / "config.json").read_text()) | {"rope_theta": 500.0}
    (source / "config.json").write_text(json.dumps(config))
    second = pool.run(ONE, cached_imports, *arguments)[0][0]
    assert json.loads((Path(second) / "context/hf/config.json").read_text())["rope_theta"] == 500.0
