"""doctor's estimates against numbers worked out by hand, for a model small enough for that."""

from dataclasses import replace

import pytest
from transformers import LlamaConfig

from nemo_tvkd.commands.doctor.hours import (
    READING_UTILISATION,
    TRAINING_UTILISATION,
    forward_flops,
    reading_hours,
    tokens_of,
    training_hours,
)
from nemo_tvkd.commands.doctor.memory import Model, Settings, forward_memory, training_memory
from nemo_tvkd.commands.doctor.parameters import Layout, layer_matrices, model_parameters, rank_parameters

CONFIG = LlamaConfig(
    vocab_size=1000,  # padded to 1024
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    tie_word_embeddings=False,
)
MATRICES = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 160
"""Of a layer: query, key, value, projection; gate, up, down."""
TIED = LlamaConfig(**{**CONFIG.to_dict(), "tie_word_embeddings": True})
STUDENT = Model(CONFIG)
ONE = Settings(layout=Layout(), tokens=512)


def test_parameters_by_hand() -> None:
    assert layer_matrices(CONFIG) == MATRICES == 43_008
    whole = rank_parameters(CONFIG, Layout(), 0)
    assert whole.total == 2 * 1024 * 64 + 4 * MATRICES + 9 * 64
    assert model_parameters(CONFIG) == 2 * 1000 * 64 + 4 * MATRICES + 9 * 64
    first, last = (rank_parameters(CONFIG, Layout(tensor=2, pipeline=2), stage, reward_head=True) for stage in (0, 1))
    assert (first.embedding, first.output, first.norms, first.reward_head) == (512 * 64, 0, 4 * 64, 0)
    assert (last.embedding, last.output, last.norms, last.reward_head) == (0, 512 * 64, 5 * 64, 64)
    assert first.matrices == last.matrices == 2 * MATRICES // 2


def test_a_tied_embedding_is_copied_to_the_last_stage_only() -> None:
    assert rank_parameters(TIED, Layout(), 0).output == 0
    assert rank_parameters(TIED, Layout(pipeline=2), 1).output == 1024 * 64
    assert rank_parameters(TIED, Layout(pipeline=2), 1, lm_head=False).output == 0
    assert model_parameters(TIED) == model_parameters(CONFIG) - 1000 * 64


def test_state_of_bf16_and_fp32() -> None:
    count = rank_parameters(CONFIG, Layout(), 0).total
    half = training_memory(STUDENT, ONE)
    assert (half.weights, half.gradients, half.optimizer) == (2 * count, 4 * count, 12 * count)
    full = training_memory(STUDENT, replace(ONE, precision="fp32"))
    assert (full.weights, full.gradients, full.optimizer) == (4 * count, 4 * count, 8 * count)


def test_replicas_share_the_optimizer_on_gpus_alone() -> None:
    eight = replace(ONE, layout=Layout(data=8))
    single, shared = training_memory(STUDENT, ONE), training_memory(STUDENT, eight)
    assert shared.optimizer == -(-single.optimizer // 8)
    assert (shared.weights, shared.gradients, shared.activations) == (
        single.weights,
        single.gradients,
        single.activations,
    )
    on_cpu = [training_memory(STUDENT, replace(settings, device="cpu")) for settings in (ONE, eight)]
    assert on_cpu[0] == on_cpu[1]


def test_activations_of_transformer_engine_by_hand() -> None:
    # bf16, a token and layer: two norms keep input and output; 3 x (A + G); 4 bytes a head; 3 F. The last norm: 8 bytes
    # a number in all; and the states that are read.
    layer = 2 * (2 * 2 * 64) + 2 * 3 * (64 + 32) + 4 * 4 + 2 * 3 * 160
    found = training_memory(STUDENT, ONE)
    assert found.activations == 512 * (4 * layer + 8 * 64 + 2 * 64)


def test_activations_of_our_layers_by_hand() -> None:
    # fp32: three tensors a norm; the attention's output twice and the angles (4 x 16); 5 F; the last norm.
    layer = 4 * (2 * 3 * 64 + 3 * (64 + 32) + 64 + 4 + 4 * 16 + 5 * 160)
    found = training_memory(STUDENT, replace(ONE, precision="fp32", device="cpu"))
    assert found.activations == 512 * (4 * layer + 4 * 3 * 64 + 4 * 64)


def test_recompute_keeps_the_layers_inputs_and_one_layer() -> None:
    long = replace(ONE, tokens=100_000, states=1000)
    plain, again = (training_memory(STUDENT, replace(long, recompute=flag)) for flag in (False, True))
    layer = 100_000 * (2 * (2 * 2 * 64) + 2 * 3 * (64 + 32) + 4 * 4 + 2 * 3 * 160)
    row = 100_000 * 64 * 2
    gradients = 2 * 100_000 * 160 * 2 + row
    assert again.activations + again.logits == 4 * row + (layer - row) + gradients
    assert plain.activations > 2.5 * again.activations


def test_sequence_parallelism_divides_the_norms() -> None:
    split, sequence = (
        training_memory(STUDENT, replace(ONE, layout=Layout(tensor=2, sequence_parallel=flag)))
        for flag in (False, True)
    )
    norms = 512 * (4 * 2 * (2 * 2 * 64) + 8 * 64)  # four layers and the last norm
    assert split.activations - sequence.activations == norms // 2


def test_the_first_stage_holds_as_many_micro_batches_as_there_are_stages() -> None:
    deep = replace(ONE, layout=Layout(pipeline=4), tokens=50_000, states=10)
    filled, alone = (training_memory(STUDENT, replace(deep, micro_batches=count)) for count in (None, 1))
    layer = 50_000 * (2 * (2 * 2 * 64) + 2 * 3 * (64 + 32) + 4 * 4 + 2 * 3 * 160)
    assert filled.stage == 0
    assert filled.activations - training_memory(STUDENT, replace(deep, micro_batches=3)).activations == layer
    assert alone.total < filled.total


def test_logits_stay_within_their_budget() -> None:
    wide = Model(LlamaConfig(**{**CONFIG.to_dict(), "vocab_size": 128_256}))
    gradient = 128_256 * 64 * 2
    for budget in (16 * 2**20, 64 * 2**20):
        found = training_memory(wide, replace(ONE, tokens=16_384, lm_head_memory=budget))
        hidden = 16_384 * 64 * 4
        assert budget / 4 < found.logits - gradient - hidden <= budget
    assert training_memory(Model(CONFIG, lm_head=False, reward_head=True), ONE).logits == 0


def test_online_models_are_weights_beside_the_run() -> None:
    teacher = Model(LlamaConfig(**{**CONFIG.to_dict(), "hidden_size": 128, "intermediate_size": 320}))
    alone, taught = training_memory(STUDENT, ONE), training_memory(STUDENT, ONE, [teacher])
    assert taught.frozen == 2 * rank_parameters(teacher.config, Layout(), 0).total
    assert taught.total - alone.total >= taught.frozen
    assert alone.frozen == 0


def test_reading_holds_weights_and_one_layer() -> None:
    found = forward_memory([STUDENT, STUDENT], replace(ONE, layout=Layout(tensor=2)))
    assert found.weights == found.frozen == 2 * rank_parameters(CONFIG, Layout(tensor=2), 0).total
    assert found.gradients == found.optimizer == found.update == 0
    assert 0 < found.activations < training_memory(STUDENT, replace(ONE, layout=Layout(tensor=2))).activations


def test_an_8b_teacher_fits_where_it_is_known_to_fit() -> None:
    """18 bytes a parameter over TP8, 6 and 12/8 over eight replicas: orders of magnitude that everyone knows."""
    from architecture_shapes import published

    big = Model(published("llama-3.1-8b"))
    tensor = training_memory(big, Settings(layout=Layout(tensor=8), tokens=4096, recompute=True))
    assert tensor.weights + tensor.gradients + tensor.optimizer == pytest.approx(8.03e9 * 18 / 8, rel=0.001)
    assert tensor.total < 24 * 2**30
    alone = training_memory(big, Settings(layout=Layout(), tokens=4096))
    assert alone.total > 80 * 2**30
    assert forward_memory([big], Settings(layout=Layout(), tokens=16_384)).total < 24 * 2**30


def test_hours_by_hand() -> None:
    layers, output = forward_flops(CONFIG, length=100)
    assert layers == 4 * (2 * MATRICES + 2 * 64 * 100)
    assert output == 2 * 1000 * 64
    run = {"tokens": 1e12, "length": 100, "gpus": 8, "tflops": 100}
    peak = 8 * 100e12 * 3600
    assert training_hours(STUDENT, **run) == pytest.approx(
        1e12 * (3 * layers + 4 * output) / (peak * TRAINING_UTILISATION)
    )
    again = training_hours(STUDENT, **run, recompute=True) - training_hours(STUDENT, **run)
    assert again == pytest.approx(1e12 * layers / (peak * TRAINING_UTILISATION))
    assert reading_hours([STUDENT], **run) == pytest.approx(1e12 * (layers + output) / (peak * READING_UTILISATION))
    online = training_hours(STUDENT, **run, frozen=[STUDENT]) - training_hours(STUDENT, **run)
    assert online == pytest.approx(1e12 * (layers + output) / (peak * TRAINING_UTILISATION))


def test_tokens_of_pairs_count_the_prompt_twice() -> None:
    assert tokens_of(1000, 300.0, pairs=True, epochs=5) == 3_000_000
    assert tokens_of(1000, 300.0, pairs=False) == 300_000
    assert reading_hours([STUDENT], tokens=0, length=1, gpus=1, tflops=1) == 0


def test_six_operations_a_parameter() -> None:
    """For a real model at a short length the sum is the field's 6 N a token (8 N with recompute), within 10 %."""
    from architecture_shapes import published

    model = Model(published("llama-3.1-8b"))
    run = {"tokens": 1e9, "length": 512, "gpus": 8, "tflops": 989}
    peak = 8 * 989e12 * TRAINING_UTILISATION * 3600
    for recompute, operations in ((False, 6), (True, 8)):
        hours = training_hours(model, **run, recompute=recompute, read=0.5)
        assert hours == pytest.approx(operations * 8.03e9 * 1e9 / peak, rel=0.1)
