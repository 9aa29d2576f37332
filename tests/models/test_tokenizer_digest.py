"""Two tokenizers that may give other tokens for the same text have other names."""

import pytest
from made_up import tokenizer
from tokenizers import AddedToken, normalizers
from transformers import AutoTokenizer

from amp_explore.models.tokenizer_digest import digest_of


def lower_case(made):
    made.backend_tokenizer.normalizer = normalizers.Lowercase()
    return made


def with_special_token(made):
    made.add_tokens([AddedToken("ab")])
    return made


def with_other_end(made):
    made.eos_token = "<pad>"
    return made


def shorter(made):
    made.model_max_length = 7
    return made


def splitting(made):
    made.split_special_tokens = True
    return made


OTHERS = {
    "a normaliser": lambda: lower_case(tokenizer()),
    "a token more": lambda: with_special_token(tokenizer()),
    "another EOS": lambda: with_other_end(tokenizer()),
    "no BOS": lambda: tokenizer(has_bos=False),
    "a BOS by default": lambda: tokenizer(adds_bos=True),
    "a length": lambda: shorter(tokenizer()),
    "special tokens as text": lambda: splitting(tokenizer()),
    "none": lambda: None,
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_tokenizer_has_another_digest(name):
    assert digest_of(OTHERS[name]()) != digest_of(tokenizer())


def test_the_digest_is_that_of_the_tokenizer_wherever_it_lies(tmp_path):
    digests = set()
    for folder in (tmp_path / "one", tmp_path / "two"):
        tokenizer(adds_bos=True).save_pretrained(folder)
        digests.add(digest_of(AutoTokenizer.from_pretrained(folder)))
    assert len(digests) == 1
