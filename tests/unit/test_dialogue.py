"""The templates that come with the project, and data.end_token and data.pad_token: ids written by hand."""

from pathlib import Path
from typing import Any

import pytest
from chat_templates import LLAMA_PROMPT, MISTRAL_PROMPT, ids, pair
from dialogues import END, EOS, EOT, PAD, SPECIAL, TOLD, base_model, base_tokenizer, write_rows

from nemo_tvkd.checkpoints.hf import find_checkpoint
from nemo_tvkd.config.compose import compose
from nemo_tvkd.config.places import BUILT_IN_TEMPLATES
from nemo_tvkd.data.records import row_from_record
from nemo_tvkd.data.template import Template
from nemo_tvkd.data.tokenizer import load_tokenizer, set_tokens, tokenizer_fingerprint
from nemo_tvkd.errors import UserError
from nemo_tvkd.files import package_folder
from nemo_tvkd.prepare.encoder import Encoder
from nemo_tvkd.prepare.training import prepare_training

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")

TURNS = [("system", " Be brief. "), ("user", "Hi"), ("assistant", "Yes?\n"), ("user", "No")]


def conversation(*turns: tuple[str, str]) -> Any:
    prompt = [{"role": role, "content": text} for role, text in turns]
    return row_from_record({"prompt": prompt, "chosen": "Yes", "rejected": "No"}, "f:1", True)


# --- the built-in templates -------------------------------------------------------------------------------------------


def test_every_built_in_template_is_a_file() -> None:
    assert {file.stem for file in (package_folder("conf") / "chat_template").iterdir()} == set(BUILT_IN_TEMPLATES)


def test_llama3(llama: Any) -> None:
    template = Template(llama, "llama3")
    assert template.name == "llama3"
    assert ids(template.encode(pair(), 100, None)) == (LLAMA_PROMPT, [9642, 128009], [2822, 128009])
    assert template.end_id == 128009
    prompt = template.encode(conversation(*TURNS), 100, None).prompt_ids.tolist()
    assert llama.decode(prompt) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes?<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nNo<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    begin, header, end, eot, break_ = 128000, 128006, 128007, 128009, 271
    assert prompt == [
        *(begin, header, 9125, end, break_, 3513, 10015, 13, eot),  # system; Be Ġbrief .
        *(header, 882, end, break_, 13347, eot),
        *(header, 78191, end, break_, 9642, 30, eot),
        *(header, 882, end, break_, 2822, eot),
        *(header, 78191, end, break_),
    ]


def test_mistral(mistral: Any) -> None:
    template = Template(mistral, "mistral")
    assert ids(template.encode(pair(), 100, None)) == (MISTRAL_PROMPT, [5592, 2], [1770, 2])
    assert template.end_id == 2
    prompt = template.encode(conversation(*TURNS[1:]), 100, None).prompt_ids.tolist()
    assert prompt == [*MISTRAL_PROMPT, 5592, 28804, 2, 733, 16289, 28793, 1770, 733, 28748, 16289, 28793]
    pieces = mistral.convert_ids_to_tokens(template.encode(conversation(*TURNS), 100, None).prompt_ids.tolist())
    assert "".join(pieces) == "<s>▁[INST]▁Be▁brief.<0x0A><0x0A>Hi▁[/INST]▁Yes?</s>▁[INST]▁No▁[/INST]"


@pytest.mark.parametrize("first", [0, 1], ids=["system", "no system"])
def test_mistral_is_mistral_commons(mistral: Any, first: int) -> None:
    messages = pytest.importorskip("mistral_common.protocol.instruct.messages")
    request = pytest.importorskip("mistral_common.protocol.instruct.request")
    tokenizers = pytest.importorskip("mistral_common.tokens.tokenizers.mistral")
    kinds = {"user": messages.UserMessage, "assistant": messages.AssistantMessage, "system": messages.SystemMessage}
    turns = [(role, text.strip()) for role, text in TURNS[first:]]
    asked = request.ChatCompletionRequest(messages=[kinds[role](content=text) for role, text in turns])
    expected = tokenizers.MistralTokenizer.v1().encode_chat_completion(asked).tokens
    assert Template(mistral, "mistral").encode(conversation(*turns), 100, None).prompt_ids.tolist() == expected


@pytest.mark.parametrize("name", BUILT_IN_TEMPLATES)
def test_turns_that_no_template_has(name: str, llama: Any, mistral: Any) -> None:
    template = Template(llama if name == "llama3" else mistral, name)
    wrong = [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}, {"role": "user", "content": "c"}]
    with pytest.raises(UserError, match=r"^f:1: .*refuses the conversation: .*turns"):
        template._chat_template.render(wrong, True, "f:1")


def test_llama3_needs_llama3s_tokens(mistral: Any) -> None:
    with pytest.raises(UserError, match=r"^teacher\.chat_template=llama3: the tokenizer has no <\|start_header_id\|>"):
        Template(mistral, "llama3", key="teacher.chat_template")


def test_a_name_that_is_none(mistral: Any) -> None:
    with pytest.raises(UserError, match=r"=lama3 is not one of auto, plain, tokenizer, llama3, mistral "):
        Template(mistral, "lama3")


# --- end and padding tokens -------------------------------------------------------------------------------------------


def test_tokens_of_the_vocabulary() -> None:
    tokenizer = base_tokenizer()
    before = tokenizer_fingerprint(tokenizer)
    set_tokens(tokenizer, "", "<|eot_id|>")
    assert tokenizer_fingerprint(tokenizer) == before
    set_tokens(tokenizer, "<|eot_id|>", "<pad>")
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (EOT, PAD)
    assert tokenizer_fingerprint(tokenizer) != before
    for key, arguments in (("end", ("<|eot|>", "")), ("pad", ("", "<|eot|>"))):
        with pytest.raises(UserError) as caught:
            set_tokens(tokenizer, *arguments)
        assert str(caught.value).startswith(f"data.{key}_token=<|eot|> is not in the tokenizer's vocabulary: near it ")
        assert "<|eot_id|>" in str(caught.value)
    with pytest.raises(UserError, match=r"its special tokens are <\|begin_of_text\|>, "):
        set_tokens(tokenizer, "QQQQQ" * 9, "")


def test_a_plain_word_as_the_end_token() -> None:
    """It is one token from then on, also where a template prints it; and its id is the vocabulary's."""
    tokenizer = base_tokenizer()
    assert tokenizer("x!", add_special_tokens=False).input_ids == [tokenizer.get_vocab()[c] for c in "x!"]
    set_tokens(tokenizer, "!", "")
    assert tokenizer.eos_token_id == tokenizer.get_vocab()["!"]
    assert len(tokenizer) == len(base_tokenizer())
    assert "!" in [str(token) for token in tokenizer.added_tokens_decoder.values()]


class Base:
    """A base student, a base teacher with its vocabulary, and one with another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.student = base_model(folder / "student", 1)
        self.teacher = base_model(folder / "teacher", 2, hidden=48)
        self.other = base_model(folder / "other", 3, base_tokenizer(unk_token="<pad>"), hidden=48)
        self.pairs = write_rows(folder / "pairs.jsonl")

    def config(self, *options: str) -> Any:
        arguments = [f"student.path={self.student}", f"teacher.path={self.teacher}", f"data.train={self.pairs}"]
        arguments += [f"trainer.output_dir={self.folder / 'run'}", "trainer.global_batch_size=2", *options]
        return compose("train", arguments)

    def encoder(self, *options: str) -> Encoder:
        config = self.config(*options)
        return Encoder.build(find_checkpoint(config.student.path, ""), "", config.data, "student.tokenizer")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base(tmp_path_factory.mktemp("base"))


def test_responses_end_with_it(base: Base) -> None:
    for options, end in (([], EOS), ([END], EOT), (TOLD, EOT), (TOLD[:1], EOT)):
        prepared = prepare_training(base.config(*options))
        for item in prepared.train:
            assert item.tokens.chosen_ids[-1] == end
            assert not {EOS, EOT} & set(item.tokens.chosen_ids[:-1].tolist())


def test_what_checkpoints_must_carry(base: Base) -> None:
    for setting in ("auto", "plain"):
        assert base.encoder(f"data.chat_template={setting}").dialogue("") is None
    dialogue = base.encoder(*TOLD).dialogue("tokenizer")
    assert dialogue is not None
    assert (dialogue.tokenizer, dialogue.end_token, dialogue.pad_token) == ("tokenizer", "<|eot_id|>", "<pad>")
    assert dialogue.chat_template == (package_folder("conf") / "chat_template/llama3.jinja").read_text()
    assert dialogue.end_id == EOT
    dialogue = base.encoder(END).dialogue("")
    assert dialogue is not None
    assert dialogue.chat_template is None
    dialogue = base.encoder("data.chat_template=llama3").dialogue("")
    assert dialogue is not None
    assert (dialogue.end_token, dialogue.end_id) == ("", EOT)
    assert prepare_training(base.config(*TOLD)).dialogue == base.encoder(*TOLD).dialogue("")


def test_an_end_token_that_ends_nothing_is_told(base: Base) -> None:
    assert not [note for note in prepare_training(base.config(*TOLD)).notes if note.startswith("warning")]
    wrong = prepare_training(base.config("data.chat_template=llama3", "data.end_token='<|end_of_text|>'"))
    assert [note for note in wrong.notes if note.startswith("warning")] == [
        "warning: data.end_token=<|end_of_text|> ends no response: by template llama3 they end with <|eot_id|>"
    ]


def test_a_tokenizer_without_an_end_token(base: Base, tmp_path: Path) -> None:
    tokenizer = base_tokenizer()
    tokenizer.eos_token = None
    folder = base_model(tmp_path / "endless", 1, tokenizer)
    with pytest.raises(UserError, match=r"to end a response with: name one by data\.end_token$"):
        prepare_training(base.config(f"student.path={folder}"))
    encoder = base.encoder(f"student.path={folder}", END)
    assert encoder.tokenizer.eos_token_id == EOT


def test_models_with_the_same_vocabulary_share_the_tokens(base: Base) -> None:
    """A base teacher's own end token is another one, and yet it reads what the student reads; so does a reference."""
    both = ["algorithm.use_reference=true", f"reference.path={base.teacher}"]
    assert prepare_training(base.config(*TOLD, *both)).train[0].readings == {}
    other = prepare_training(base.config(*TOLD, f"teacher.path={base.other}")).train[0]
    assert (
        other.readings["teacher"].tokens.chosen_ids[-1] == EOS
    )  # another tokenizer: its own, and the plain transcript
    with pytest.raises(UserError, match=r"^data\.end_token=<eot> is not in the tokenizer's vocabulary"):
        prepare_training(base.config("data.end_token='<eot>'"))


def test_a_run_with_other_tokens_is_another_run(base: Base, tmp_path: Path) -> None:
    """Runs of before there were these keys had the tokenizer's own."""
    from omegaconf import OmegaConf

    from nemo_tvkd.prepare.training import check_output

    config = base.config(f"trainer.output_dir={tmp_path}")
    (tmp_path / "checkpoints/step-00000001/weights").mkdir(parents=True)
    (tmp_path / "checkpoints/step-00000001/weights/metadata.json").touch()
    saved = OmegaConf.to_container(config)
    assert isinstance(saved, dict)
    del saved["data"]["end_token"], saved["data"]["pad_token"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(saved)))
    check_output(config)
    with pytest.raises(UserError, match=r"holds a run with data\.end_token=, not <\|eot_id\|>"):
        check_output(base.config(f"trainer.output_dir={tmp_path}", END))


def test_the_helper_is_a_base_model(base: Base) -> None:
    """Otherwise nothing above is shown."""
    tokenizer = load_tokenizer(str(base.student))
    assert (tokenizer.chat_template, tokenizer.pad_token, tokenizer.eos_token_id) == (None, None, EOS)
    assert tokenizer.convert_ids_to_tokens([*range(len(SPECIAL))]) == [*SPECIAL]
    assert tokenizer("<|eot_id|>", add_special_tokens=False).input_ids == [EOT]
