import subprocess
import sys

import pytest

from jaxvision import data


@pytest.mark.parametrize("name", data.__all__)
def test_every_public_name_is_there(name):
    assert getattr(data, name) is not None


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'Voc'"):
        data.Voc  # noqa: B018


def test_names_load_when_used():
    code = (
        "import sys\n"
        "from jaxvision import data\n"
        "assert not {'grain', 'tensorflow_datasets', 'sklearn', 'skimage'} & set(sys.modules)\n"
        "data.ImageFolder, data.resize\n"
        "assert not {'grain', 'tensorflow_datasets'} & set(sys.modules)\n"
        "data.batches\n"
        "assert 'grain' in sys.modules and 'tensorflow_datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
