"""Decisions, series, items and tables: as published, at random weights, and refusing what they cannot read."""

import pytest
import torch
from reference import shaken, there_and_back

from qkv import models
from qkv.models.tabular import Entmax, Sparsemax

DECISION = {"state_dim": 5, "act_dim": 3, "hidden_size": 32, "n_layer": 2, "n_head": 4, "max_ep_len": 50, "n_positions": 64}
INFORMER = {"prediction_length": 6, "context_length": 12, "lags_sequence": [1, 2, 4], "num_time_features": 2, "d_model": 32, "encoder_layers": 2,
            "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 40, "decoder_ffn_dim": 48}  # fmt: skip


@pytest.mark.parametrize("more", [{}, {"action_tanh": False, "activation_function": "gelu", "n_inner": 40}])
@torch.no_grad()
def test_decision_transformers_equal_the_reference(more, tmp_path):
    import transformers

    theirs = shaken(transformers.DecisionTransformerModel(transformers.DecisionTransformerConfig(**DECISION | more)))
    ours = there_and_back(theirs, tmp_path)
    B, T = 2, 7
    given = {"states": torch.randn(B, T, 5), "actions": torch.randn(B, T, 3), "returns_to_go": torch.randn(B, T, 1), "rewards": torch.randn(B, T, 1),
             "timesteps": torch.arange(T).expand(B, -1), "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])}  # fmt: skip
    wanted, out = theirs(**given), ours(**given)
    for name in ("action_preds", "state_preds", "return_preds"):
        a, b = (x[given["attention_mask"].bool()] for x in (out[name], getattr(wanted, name)))
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    later = given | {"actions": given["actions"].clone()}
    later["actions"][:, 4:] += 1
    real = given["attention_mask"].bool()[:, :5]
    assert ours(**later)["action_preds"][:, :5][real].equal(out["action_preds"][:, :5][real])  # the action of a step does not see itself
    with pytest.raises(ValueError, match="states have the shape"):
        ours(**given | {"states": torch.randn(B, T, 4)})
    with pytest.raises(ValueError, match="the model knows 0 to 49"):
        ours(**given | {"timesteps": given["timesteps"] + 47})
    with pytest.raises(ValueError, match="are not bounded"):
        models.TrajectoryDecoder(dim=8, layers=1, heads=1, length=9, discrete=True)


def test_cloning_does_not_read_returns():
    cfg = models.preset("decision-nano", returns=False)
    model = models.build(cfg).eval()
    given = {"states": torch.randn(1, 4, 4), "actions": torch.randn(1, 4, 2), "timesteps": torch.arange(4)[None]}
    a, b = (model(**given, returns_to_go=torch.full((1, 4, 1), r))["action_preds"] for r in (0.0, 9.0))
    assert a.equal(b)
    told = models.build(models.preset("decision-nano")).eval()
    assert not told(**given, returns_to_go=torch.zeros(1, 4, 1))["action_preds"].equal(
        told(**given, returns_to_go=torch.ones(1, 4, 1))["action_preds"]
    )


@pytest.mark.parametrize("more", [
    {"attention_type": "full", "scaling": "std", "distribution_output": "normal", "input_size": 2},
    {"attention_type": "prob", "sampling_factor": 2, "scaling": "mean"},
    {"attention_type": "full", "distil": False, "scaling": None, "distribution_output": "student_t", "num_static_real_features": 1,
     "num_static_categorical_features": 2, "cardinality": [3, 5], "embedding_dimension": [2, 3]},
], ids=["normal", "prob", "statics"])  # fmt: skip
@torch.no_grad()
def test_informers_equal_the_reference(more, tmp_path):
    import transformers

    theirs = shaken(transformers.InformerForPrediction(transformers.InformerConfig(**INFORMER | more)))
    ours = there_and_back(theirs, tmp_path)
    tail = (2,) if more.get("input_size") == 2 else ()
    given = {"past_values": torch.rand(3, 16, *tail) + 0.5, "past_time_features": torch.randn(3, 16, 2), "past_observed_mask": (torch.rand(3, 16, *tail) > 0.2).float(),
             "future_values": torch.rand(3, 6, *tail), "future_time_features": torch.randn(3, 6, 2)}  # fmt: skip
    if "cardinality" in more:
        given |= {"static_real_features": torch.randn(3, 1), "static_categorical_features": torch.tensor([[0, 4], [2, 1], [1, 1]])}
    torch.manual_seed(5)
    wanted = theirs(**given)
    torch.manual_seed(5)
    out = ours(**given)
    torch.testing.assert_close(out["loss"], wanted.loss, atol=1e-5, rtol=0)
    for i, p in enumerate(wanted.params):
        torch.testing.assert_close(out[f"params_{i}"], p, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="context=12 and the longest lag, 4"):
        ours(**given | {"past_values": given["past_values"][:, 1:]})


def test_the_authors_informer_refuses_what_it_cannot_read():
    model = models.build(models.preset("informer-nano")).eval()
    x, marks = torch.randn(2, 96, 1), torch.ones(2, 96, 4)
    given = {"x_enc": x, "x_mark_enc": marks, "x_dec": x[:, :72], "x_mark_dec": marks[:, :72]}
    assert model(**given)["logits"].shape == (2, 24, 1)
    for change, message in (({"x_enc": x[..., :0]}, "x_enc has the shape"), ({"x_mark_enc": marks + 23}, "a mark of hour is 24|a mark of weekday is 24|a mark of month is 24"),
                            ({"x_dec": x[:, :9], "x_mark_dec": marks[:, :9]}, "24 are said")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            model(**given | change)


@pytest.mark.parametrize("kind", [Sparsemax, Entmax])
def test_sparse_masks_are_those_of_their_definitions(kind):
    """The maximiser of <p, x> plus an entropy over the simplex, found by bisection; gradients by finite differences."""
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    alpha = 2.0 if kind is Sparsemax else 1.5
    scaled = (alpha - 1) * x
    low, high = scaled.amax(1, keepdim=True) - 1, scaled.amax(1, keepdim=True)
    for _ in range(200):
        tau = (low + high) / 2
        total = (scaled - tau).clamp(min=0).pow(1 / (alpha - 1)).sum(1, keepdim=True)
        low, high = torch.where(total > 1, tau, low), torch.where(total > 1, high, tau)
    wanted = (scaled - tau).clamp(min=0).pow(1 / (alpha - 1))
    torch.testing.assert_close(kind.apply(x), wanted, atol=1e-9, rtol=0)
    assert (kind.apply(x) == 0).any() and torch.autograd.gradcheck(kind.apply, (x.clone().requires_grad_(True),))


def test_tables_with_categories_and_what_is_not_there():
    cfg = models.TabularDecider(features=3, outputs=2, categories=(1,), sizes=(4,), widths=(2,), ghost=4)
    model = models.build(cfg)
    x = torch.tensor([[0.5, 3, 1.0], [0.1, 0, -1.0]] * 4)
    out = model.eval()(x)
    assert out["logits"].shape == (8, 2) and out["masks"].shape == (3, 8, 3)
    torch.testing.assert_close(out["masks"].sum(-1), torch.ones(3, 8))
    model.train()(x)
    with pytest.raises(ValueError, match="column 1 holds category 4; the model knows 0 to 3"):
        model(torch.tensor([[0.0, 4, 0.0]]))
    with pytest.raises(ValueError, match=r"it must be \(rows, 3\)"):
        model(torch.zeros(2, 2))
    told = models.build(models.replace(cfg, output="reconstruction")).eval()(x, hidden=torch.tensor([[0.0, 1, 0]]).expand(8, -1))
    assert told["covered"][0].tolist() == [0, 1, 1, 0] and told["reconstructed"].shape == (8, 4)
    for fields, message in (
        ({"categories": (1,)}, "each column of categories needs all three"),
        ({"mask": "softmax"}, "sparsemax, entmax"),
        ({"shared": 0, "independent": 0}, "at least one layer"),
        ({"gamma": 0.5}, "gamma=0.5 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            models.TabularDecider(**{"features": 3} | fields)


@torch.no_grad()
def test_items_that_were_not_taken_are_padding():
    """A history is read the same however much padding stands behind it; the mask is never said."""
    model = shaken(models.build(models.preset("bert4rec-nano", vocab=30, length=8, dim=16, layers=1, heads=2, hidden=24)))
    short, long = torch.tensor([[4, 9, 29]]), torch.tensor([[4, 9, 29, 0, 0]])
    a, b = model(input_ids=short), model(input_ids=long)
    torch.testing.assert_close(a["logits"], b["logits"][:, :3], atol=1e-6, rtol=0)
    assert a["logits"].shape == (1, 3, 29)
    scores = a["hidden"] @ model.embed.token.weight[:29].T + model.head.out.bias
    torch.testing.assert_close(scores, a["logits"], atol=1e-6, rtol=0)
