"""Two nodes of one cluster, one of which goes while it works."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest

from robench.results.store import RunStore

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

SIZE = {"object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture
def cluster():
    """A head with room for two workers, and a second node with room for one."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **SIZE})
    node = made.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    ray.init(address=made.address, log_to_driver=False, configure_logging=False)
    yield made, node
    ray.shutdown()
    made.shutdown()


def test_a_node_that_goes_costs_only_its_chunk(cluster, synthetic_runs, synthetic, tmp_path):
    made, node = cluster
    groups = synthetic(2, 2, behaviors=20, chunk=2)
    (tmp_path / "cells").mkdir()
    pool = synthetic_runs.sleepers(tmp_path, groups, 3, 0.2, cpus=1)
    gone = []

    def remove() -> None:
        while not list(tmp_path.glob("cells/*/rows.jsonl")):
            time.sleep(0.05)
        made.remove_node(node, allow_graceful=False)
        gone.append(node)

    def begin(run: object) -> None:
        while len(pool.idle()) < 3:
            pool.wait()
        threading.Thread(target=remove, daemon=True).start()

    synthetic_runs.work(tmp_path, groups, pool, told=begin)
    assert gone and pool.lost >= 1
    store = RunStore(tmp_path)
    for group in groups:
        for cell, _ in group.cells:
            lines = (store.path(cell) / "rows.jsonl").read_text().splitlines()
            assert sorted(json.loads(line)["behavior"] for line in lines) == cell.header["planned"]
