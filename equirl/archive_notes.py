"""Notes on what a zip of SB3 holds and SB3 does not usually write.

They inform a user who wonders whether to trust a file, and protect nobody: a list of harmless names is never complete,
and honest names can be put to dishonest use. What protects is that no pickle is loaded, whatever is in it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from equirl.archive_tensors import shown
from equirl.pickles import MalformedPickleError, outline

MOST_NOTES = 20
MOST_OPCODES = 50_000  # of one pickle; SB3's have some hundreds

_WRITTEN = {"data", "_stable_baselines3_version", "system_info.txt"}

# The attributes of models of SB3 and sb3_contrib that are pickled where they are not plain, since version 1.0.
# fmt: off
_PICKLED = {
    "policy_class", "policy_kwargs", "observation_space", "action_space", "learning_rate", "lr_schedule",
    "clip_range", "clip_range_vf", "exploration_schedule", "train_freq", "action_noise",
    "replay_buffer_class", "replay_buffer_kwargs", "rollout_buffer_class", "rollout_buffer_kwargs",
    "ep_info_buffer", "ep_success_buffer", "_last_obs", "_last_original_obs", "_last_episode_starts",
    "_last_dones", "_last_lstm_states", "target_entropy", "ent_coef", "gradient_steps", "start_time", "seed",
    "tensorboard_log", "num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "exploration_rate",
    "_current_progress_remaining", "batch_norm_stats", "batch_norm_stats_target", "sde_support",
}
# fmt: on
_HARMLESS = re.compile(
    r"""
    (__builtin__|builtins)\.(bool|bytes|bytearray|complex|dict|float|frozenset|int|list|object|range|set|slice|str|tuple)
    | collections\.(deque|OrderedDict|defaultdict) | pathlib\.\w+ | copyreg\._reconstructor
    | abc\.ABCMeta | math | numpy | torch | torch\.nn | torch\.nn\.functional
    | numpy\.(dtype|ndarray|bool_?|float\d+|u?int\d+)
    | numpy\.(_?core)\.multiarray\.(_reconstruct|scalar) | numpy\._?core\.numeric\._frombuffer
    | numpy\.random\._pickle\.\w+ | numpy\.random\._\w+\.(PCG64|PCG64DXSM|MT19937|Philox|SFC64)
    | numpy\.random\.bit_generator\.(SeedSequence|__pyx_unpickle_SeedSequence)
    | (gym|gymnasium)\.spaces\.[a-z_]+\.[A-Z]\w+
    | torch\.(device|float\d+|Size) | torch\.nn\.modules\.[a-z]+\.[A-Z]\w+ | torch\.optim\.[a-z]+\.[A-Z]\w+
    | cloudpickle\.cloudpickle(_fast)?\.(_builtin_type|_make_cell|_make_empty_cell|_make_function|_function_setstate
        |_function_getstate|_fill_function|_make_skel_func|_make_skeleton_class|_class_setstate|_get_cell_contents
        |_empty_cell_value|subimport)
    | (stable_baselines3|sb3_contrib|rl_zoo3|equirl)\.([a-z_0-9]+\.)+[A-Z]\w+
    """,
    re.VERBOSE,
)


def notes(names: Iterable[str], pickles: Mapping[str, object]) -> list[str]:
    """Return notes on members that SB3 does not write, and on pickles that it would not write.

    Args:
        names: of the members of a zip.
        pickles: base64 texts by the name of the attribute.

    >>> notes(["data", "policy.pth", "notes.pkl"], {})
    ["member 'notes.pkl' is nothing that SB3 writes; it was not read"]
    """
    found = [*islice(_on_members(names), MOST_NOTES), *islice(_on_pickles(pickles), MOST_NOTES)]
    return [*found[:MOST_NOTES], "there is more of this kind"] if len(found) > MOST_NOTES else found


def _on_members(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if name not in _WRITTEN and not name.endswith(".pth"):
            yield f"member {shown(name)} is nothing that SB3 writes; it was not read"


def _on_pickles(pickles: Mapping[str, object]) -> Iterator[str]:
    for key, text in pickles.items():
        try:
            content = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
            strange = [name for name in outline(content, MOST_OPCODES).names if not _HARMLESS.fullmatch(name)]
        except MalformedPickleError as error:
            yield f"data: {shown(key)} is {error}; it was not read"
        except ValueError:
            yield f"data: {shown(key)} is no base64 text; it was not read"
        else:
            if strange:
                named = ", ".join(shown(name)[1:-1] for name in strange[:3])
                yield f"data: {shown(key)} is pickled Python that names {named}; it was not read"
            elif key not in _PICKLED:
                yield f"data: {shown(key)} is pickled Python where SB3 writes none; it was not read"
