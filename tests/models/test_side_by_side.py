"""Models that are read side by side give what they give one after the other."""

import copy
import threading

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from chatpipe.models import side_by_side as module
from chatpipe.models.side_by_side import side_by_side

SHAPE = {"vocab_size": 12, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
IDS = torch.tensor([[3, 4, 5, 6]])


def models(number=2):
    """Different models of float64; each has a configuration of its own."""
    made = []
    for seed in range(number):
        torch.manual_seed(seed)
        made.append(LlamaModel(LlamaConfig(**SHAPE)).double())
    return made


def states(model):
    return model(input_ids=IDS).last_hidden_state


def threads_of(*given):
    """The threads in which models are read."""
    here = []
    with torch.no_grad():
        side_by_side([(model, lambda: here.append(threading.current_thread()) or ()) for model in given])
    return set(here)


HERE = {threading.current_thread()}


def gradients():
    one, other = models()
    (first, constant), (second,) = side_by_side(
        [(one, lambda: (states(one), states(one).detach())), (other, lambda: (states(other).sigmoid(),))]
    )
    assert (first.requires_grad, constant.requires_grad, second.requires_grad) == (True, False, True)
    loss = (first * second * constant).sum()
    loss.backward()
    return [loss.detach(), *(parameter.grad for model in (one, other) for parameter in model.parameters())]


def test_outputs_and_gradients_are_those_of_one_after_the_other(two_cores):
    side = gradients()
    torch.set_num_threads(1)
    for one, other in zip(side, gradients(), strict=True):
        assert torch.equal(one, other)


def test_readings_meet_each_other_and_share_the_cores(two_cores):
    """Each waits until the other has begun too: one after the other they would wait in vain."""
    barrier = threading.Barrier(2, timeout=20)

    def reading():
        barrier.wait()
        return (torch.tensor(torch.get_num_threads()),)

    with torch.no_grad():
        results = side_by_side([(model, reading) for model in models()])
    assert [threads.item() for (threads,) in results] == [1, 1]
    assert torch.get_num_threads() == 2


def test_what_cannot_be_read_side_by_side_is_read_one_after_the_other(two_cores, monkeypatch):
    one, other = models()
    assert not threads_of(one, other) & HERE
    shares_layers = copy.copy(one)
    assert threads_of(one, shares_layers) == HERE
    one_config = LlamaConfig(**SHAPE)
    assert threads_of(LlamaModel(one_config), LlamaModel(one_config)) == HERE
    tied = LlamaModel(LlamaConfig(**SHAPE))
    tied.embed_tokens.weight = one.embed_tokens.weight
    assert threads_of(one, tied) == HERE
    with torch.device("meta"):
        assert threads_of(one, LlamaModel(LlamaConfig(**SHAPE))) == HERE
    monkeypatch.setattr(module, "LARGEST", one.num_parameters() - 1)
    assert threads_of(one, other) == HERE


def test_one_thread_reads_one_after_the_other():
    assert torch.get_num_threads() == 1
    assert threads_of(*models()) == HERE


def test_the_callers_modes_hold_in_the_threads(two_cores):
    one, other = (model.float() for model in models())
    readings = [(model, lambda model=model: (model.layers[0].mlp(torch.ones(1, 8)),)) for model in (one, other)]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        results = side_by_side(readings)
    assert [(out.dtype, out.requires_grad) for (out,) in results] == [(torch.bfloat16, False)] * 2
    with torch.no_grad():
        assert side_by_side(readings)[1][0].dtype == torch.float32


def test_an_error_of_a_reading_reaches_the_caller_after_the_others_are_done(two_cores):
    one, other = models()
    failed, done = threading.Event(), []

    def fails():
        failed.set()
        raise ValueError("broken")

    def goes_on():
        assert failed.wait(20)
        done.append(states(other))
        return (done[0],)

    with pytest.raises(ValueError, match="broken"):
        side_by_side([(one, fails), (other, goes_on)])
    assert len(done) == 1
    assert torch.get_num_threads() == 2
