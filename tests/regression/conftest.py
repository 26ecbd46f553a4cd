"""The toy's questions, for whoever drives servers."""

import pytest


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    from tests.regression import toy  # imports torch

    folder = tmp_path_factory.mktemp("data")
    toy.write_data(folder)
    return folder
