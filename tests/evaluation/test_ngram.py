import numpy as np
import pytest

from chatpipe.evaluation.baselines import BOUNDARY, SYMBOLS, TrigramModel, trigram_bits_per_byte


def test_probabilities_of_any_context_sum_to_one():
    rng = np.random.default_rng(0)
    model = TrigramModel([bytes(rng.integers(97, 110, size=500, dtype=np.uint8)), "Grüße 🙂".encode(), b""])
    first, second = rng.integers(0, SYMBOLS, size=(2, 300, 1))
    seen = rng.integers(97, 110, size=(2, 300, 1))
    for a, b in ((first, second), (seen[0], seen[1]), (np.full((1, 1), BOUNDARY), seen[0])):
        probs = model.probability(a, b, np.arange(SYMBOLS))
        assert probs.min() > 0
        np.testing.assert_allclose(probs.sum(1), 1, atol=1e-12)


def test_witten_bell_by_hand():
    # Predicted in "aab": a after (^,^), a after (^,a), b after (a,a), $ after (a,b).
    model = TrigramModel([b"aab"])
    a, b = ord("a"), ord("b")
    p1_b = (1 + 3 / 257) / (4 + 3)  # a a b $: 4 tokens of 3 kinds
    p2_b = (1 + 2 * p1_b) / (2 + 2)  # behind a: a, b
    p3_b = (1 + 1 * p2_b) / (1 + 1)  # behind a a: b
    assert model.probability(np.array(a), np.array(a), np.array(b)) == pytest.approx(p3_b)
    # Behind (b, a) nothing was seen: the 2-gram. Behind "x" neither: the 1-gram.
    assert model.probability(np.array(b), np.array(a), np.array(b)) == pytest.approx(p2_b)
    assert model.probability(np.array(b), np.array(ord("x")), np.array(b)) == pytest.approx(p1_b)


def test_untrained_model_is_uniform_and_document_ends_cost_no_bits():
    assert trigram_bits_per_byte([], [b"abc", b"d"]) == pytest.approx(np.log2(257))


def test_text_is_utf8_and_counts_as_bytes():
    texts = ["Grüße aus Köln.", "Über 100 €!"]
    assert trigram_bits_per_byte(texts, texts[:1]) == trigram_bits_per_byte(
        [text.encode() for text in texts], [texts[0].encode()]
    )


def test_bits_approach_the_entropy_of_a_second_order_source():
    # Each symbol is one of two that its two predecessors allow, with p = 0.9: 0.469 bits.
    rng = np.random.default_rng(0)
    flips = rng.random(60_000) < 0.1
    text = [0, 1]
    for flip in flips:
        text.append((text[-1] + 2 * text[-2] + 1 + flip) % 4)
    stream = bytes(ord("a") + symbol for symbol in text)
    assert trigram_bits_per_byte([stream[:50_000]], [stream[50_000:]]) == pytest.approx(0.469, abs=0.02)


def test_contexts_do_not_reach_into_the_document_before():
    assert trigram_bits_per_byte([b"ab", b"cd"], [b"cd"]) == trigram_bits_per_byte([b"cd", b"ab"], [b"cd"])


def test_counting_in_chunks_changes_nothing(monkeypatch):
    documents = [b"the cat sat on the mat", b"the dog sat"]
    whole = trigram_bits_per_byte(documents, documents)
    monkeypatch.setattr("chatpipe.evaluation.baselines.CHUNK", 7)
    assert trigram_bits_per_byte(documents, documents) == pytest.approx(whole, abs=1e-12)


def test_no_validation_text_is_refused():
    with pytest.raises(ValueError, match="no validation text"):
        trigram_bits_per_byte([b"abc"], [b""])
