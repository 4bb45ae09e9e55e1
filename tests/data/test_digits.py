import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxvision.data.digits import DigitCrops, Digits


def test_digits_are_scikit_learns():
    digits = load_digits()
    train, test = Digits("train"), Digits("test")
    assert (len(train), len(test)) == (1437, 360)
    for source, row, origin in ((train, 0, 0), (train, 1436, 1436), (test, 0, 1437), (test, 359, 1796)):
        example = source[row]
        assert example["image"].shape == (8, 8, 3) and example["image"].dtype == np.uint8
        np.testing.assert_allclose(example["image"][..., 1] * (16 / 255), digits.images[origin], atol=0.05)
        assert example["label"] == digits.target[origin]
    assert train.categories == tuple("0123456789")


def test_crops_show_the_digit_and_depend_on_their_index_alone():
    test = DigitCrops("test")
    assert (len(test), len(DigitCrops("train"))) == (360, 16 * 1437)
    example, again = test[5], DigitCrops("test")[np.int64(5)]
    np.testing.assert_array_equal(example["image"], again["image"])
    assert example["image"].shape == (64, 64, 3) and example["image"].dtype == np.uint8
    assert [test[i]["label"] for i in range(360)] == load_digits().target[1437:].tolist()
    assert not np.array_equal(DigitCrops("train")[0]["image"], DigitCrops("train")[1437]["image"])  # painted anew
    assert DigitCrops("train")[0]["label"] == DigitCrops("train")[1437]["label"]
    with pytest.raises(IndexError):
        test[360]


@pytest.mark.parametrize("source", [Digits, DigitCrops])
def test_unknown_split(source):
    with pytest.raises(ValueError, match="train, test, not 'val'"):
        source("val")
