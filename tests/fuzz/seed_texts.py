"""Small valid files of the text formats, to start a fuzzer from."""

from __future__ import annotations

import json

CONFIG = 'subject = "digits"\nonly = "accuracy"\nlimit = 5\nseed = 3\njson = true\ntrust = ["a"]\nwith = ["a.B:c=1"]\n'
AMC = "\0:FULLY-SPECIFIED\n1\nroot 0 1 2 3 4 5\na 30\n2\nroot 0 1 2 3 4 5\na 40\n"
NTU = "S001C001P001R001A00{}.skeleton"
JOINTS = "\n".join(f"{k * 0.1} {k * 0.2} {1 + k * 0.05} 0 0 0 0 0 0 0 0 2" for k in range(25))
ASF = """:units
  length 0.45
:root
  order TX TY TZ RX RY RZ
:bonedata
begin
  name a
  direction 0 1 0
  length 2
  axis 0 0 0 XYZ
  dof rx
end
:hierarchy
begin
  root a
end
"""

LEAVES = [{"leaf_value": v} for v in (-0.5, 0.25)]
SPLIT = {"split_feature": 3, "threshold": 0.5, "decision_type": "<=", "default_left": True, "missing_type": "NaN"}
CASES = {"split_feature": 1, "threshold": "0||1", "decision_type": "==", "default_left": False, "missing_type": "None"}
NODE = {**SPLIT, "left_child": {**CASES, "left_child": LEAVES[0], "right_child": LEAVES[1]}, "right_child": LEAVES[1]}
ABOUT = {"objective": "binary sigmoid:1.5", "num_tree_per_iteration": 1, "max_feature_idx": 15}
DUMP = json.dumps({**ABOUT, "tree_info": [{"tree_structure": NODE}, {"tree_structure": LEAVES[0]}]})
