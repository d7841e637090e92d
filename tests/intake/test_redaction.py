"""What strangers wrote, made fit to be kept: no secrets, nothing that does not print, no more than its limit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuwatch.intake.redaction import MASK, clean_fact, clean_text

SECRETS = [
    "hf_abcdefghijKLMNOPqrstuv",
    "ghp_0123456789abcdefghijABCDEFGHIJ",
    "github_pat_11ABCDEFG0123456789abcdef",
    "glpat-abcdefghij0123456789",
    "sk-proj-abcdefghijklmnopqrstuvwx",
    "AKIAIOSFODNN7EXAMPLE",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "password=hunter2",
    "WANDB_API_KEY=0123456789abcdef",
    "api-key: abcdef",
    "token=abc",
]
LAYERS = [
    "model.token_embedding.weight",
    "layers.0.attn.key.bias",
    "secret_layer.weight",
    "transformer.h.11.mlp.c_proj.weight",
    "loss/password",
    "sk-learn/accuracy",
    "Точность/val",
    "精度",
    "0.weight",
    "tokens per second: 12",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_are_masked_wherever_they_stand(secret):
    value = secret.split("=")[-1].split(": ")[-1]
    for text in (secret, f"run {secret} end", f"a/{secret}"):
        assert value not in clean_text(text)
        assert MASK in clean_text(text)


@pytest.mark.parametrize("name", LAYERS)
def test_names_of_layers_and_tags_stay(name):
    assert clean_text(name) == name


def test_credentials_in_an_address():
    assert clean_text("https://me:hunter2@example.org/data") == f"https://{MASK}example.org/data"


def test_a_cut_leaves_no_half_of_a_secret():
    text = "x" * 250 + " hf_abcdefghijKLMNOPqrstuv"
    assert "hf_" not in clean_text(text)


@given(st.text(alphabet=st.characters(), max_size=600), st.integers(1, 300))
def test_whatever_comes_is_printable_bounded_and_can_be_encoded(text, limit):
    cleaned = clean_text(text, limit)
    assert len(cleaned) <= limit
    assert cleaned.isprintable()
    cleaned.encode()


@pytest.mark.parametrize("key", ["password", "wandb.api_key", "HF_TOKEN", "auth_token", "aws_secret", "credentials"])
def test_a_fact_whose_key_names_a_secret_is_masked_whole(key):
    assert clean_fact(key, "anything") == MASK


@pytest.mark.parametrize(
    ("key", "value"), [("lr", 0.1), ("max_tokens", 512), ("optimizer", "AdamW"), ("tokenizer", "bpe"), ("amp", True)]
)
def test_other_facts_stay(key, value):
    assert clean_fact(key, value) == value
