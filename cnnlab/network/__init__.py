"""Networks from blocks: order, inference of sizes, nested blocks, the layer table."""

from cnnlab.network.plan import NetworkPlan, build_network, plan_network
from cnnlab.network.table import LayerRow, render_table

__all__ = ["LayerRow", "NetworkPlan", "build_network", "plan_network", "render_table"]
