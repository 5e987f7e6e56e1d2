"""The table of known schemas: a name, and which of its columns plays which role.

To add a dataset, add its columns here; its name becomes a choice of `--format`. Most datasets
need no entry: `recognise` knows the usual names of every role.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from noisescope.datasets.adapters.names import OPEN
from noisescope.datasets.adapters.schema import Schema
from noisescope.pairs import Modality

_SIDES = {"chosen": "chosen", "rejected": "rejected"}
_NAMED = {"annotator": "annotator", "pair_id": "pair_id"}
#: Our own `label`: 1 as written, 0 the other way round, 0.5 a tie.
_LABEL = {"a_wins": "1|chosen", "b_wins": "0|rejected", "tie": "0.5|tie"}
#: Negative: the first is better. The size is the strength.
_SIGN = {"a_wins": "negative", "b_wins": "positive", "tie": "0"}
_MODELS = (("chosen-model", "rejected-model"), ("chosen_model", "rejected_model"))


def _schemas() -> list[Schema]:
    text = [
        Schema("hh_rlhf", {**_SIDES, **_NAMED}, transcripts=True,
               about="two transcripts with a common opening"),
        Schema(
            "ultrafeedback",
            {"prompt": "prompt", **_SIDES, "score_chosen": "score_chosen",
             "score_rejected": "score_rejected", **_NAMED},
            keys=("score_chosen", "score_rejected"),
            copies=("messages",),
            twins=_MODELS,
            about="message lists with scores",
        ),
        Schema(
            "ultrafeedback_argilla",
            {"prompt": "prompt", **_SIDES, "score_chosen": "chosen-rating",
             "score_rejected": "rejected-rating", **_NAMED},
            keys=("chosen-rating", "rejected-rating"),
            copies=("messages",),
            twins=_MODELS,
            about="message lists with ratings",
        ),
        Schema(
            "trl",
            {"prompt": "prompt", **_SIDES, "tools": "tools", **_NAMED},
            twins=_MODELS,
            about="texts or message lists; prompt given or implied",
        ),
        Schema(
            "trl_vision",
            {"prompt": "prompt", **_SIDES, "images": "images", **_NAMED},
            modality="vision",
            about="texts or message lists about the pictures of the prompt",
        ),
        Schema("columnar", {"prompt": "prompt", **_SIDES, **_NAMED}, about="our own text format"),
        Schema(
            "columnar_label",
            {"prompt": "prompt", "a": "chosen", "b": "rejected", "preference": "label", **_LABEL,
             **_NAMED},
            about="the same with a label: 1 as written, 0 the other way round, 0.5 a tie",
        ),
        Schema(
            "helpsteer2",
            {"prompt": "prompt", "a": "response_1", "b": "response_2",
             "preference": "preference_strength", **_SIGN,
             "votes": "all_preferences_unprocessed.strength"},
        ),
        Schema(
            "helpsteer3",
            {"prompt": "context", "a": "response1", "b": "response2",
             "preference": "overall_preference", **_SIGN, "votes": "individual_preference.score"},
        ),
        Schema(
            "helpsteer2_ratings",
            {"prompt": "prompt", "response": "response", "rating": "helpfulness"},
            keys=("correctness", "coherence"),
        ),
        Schema(
            "ultrafeedback_completions",
            {"prompt": "instruction", "responses": "completions.response",
             "ratings": "completions.overall_score"},
        ),
        Schema(
            "nectar",
            {"prompt": "prompt", "responses": "answers.answer", "ranks": "answers.rank"},
        ),
        Schema(
            "offsetbias",
            {"prompt": "instruction", "a": "output_1", "b": "output_2", "preference": "label",
             "a_wins": "1", "b_wins": "2"},
        ),
        Schema(
            "pku_saferlhf",
            {"prompt": "prompt", "a": "response_0", "b": "response_1",
             "preference": "better_response_id", "a_wins": "0", "b_wins": "1"},
        ),
        Schema(
            "arena55k",
            {"prompt": "prompt", "a": "response_a", "b": "response_b",
             "share_a": "winner_model_a", "share_b": "winner_model_b", "share_tie": "winner_tie"},
        ),
        Schema(
            "arena",
            {"a": "conversation_a", "b": "conversation_b", "preference": "winner",
             "annotator": "judge"},
        ),
        Schema(
            "shp",
            {"prompt": "history", "a": "human_ref_A", "b": "human_ref_B", "preference": "labels",
             "a_wins": "1", "b_wins": "0", "strength": "score_ratio", "score_a": "score_A",
             "score_b": "score_B"},
        ),
        Schema(
            "summarize_from_feedback",
            {"prompt": "info.title+info.post|info.article", "a": "summaries.0.text",
             "b": "summaries.1.text", "preference": "choice", "a_wins": "0", "b_wins": "1",
             "annotator": "worker", "strength": "extra.confidence"},
        ),
        Schema(
            "argilla_orca",
            {"system": "system", "prompt": "input", **_SIDES, "ratings": "rating",
             "status": "status"},
            keys=("rating", "status", "generations"),
        ),
        Schema(
            "openai",
            {"prompt": "input.messages", "chosen": "preferred_output",
             "rejected": "non_preferred_output", "tools": "input.tools"},
        ),
        Schema(
            "ms_swift",
            {"prompt": "messages.:-1", "chosen": "messages.-1.content",
             "rejected": "rejected_response"},
        ),
        Schema(
            "ms_swift_query",
            {"prompt": "query", "chosen": "response", "rejected": "rejected_response"},
        ),
        Schema(
            "webgpt",
            {"prompt": "question.full_text", "a": "answer_0", "b": "answer_1",
             "score_a": "score_0", "score_b": "score_1"},
        ),
        Schema(
            "stack_exchange_paired",
            {"prompt": "question", "chosen": "response_j", "rejected": "response_k"},
        ),
    ]  # fmt: skip
    image = [
        Schema(
            "pick_a_pic",
            {"prompt": "caption", "a": "jpg_0", "b": "jpg_1", "share_a": "label_0",
             "share_b": "label_1", "labelled": "has_label", "annotator": "user_id",
             "pair_id": "pair_id", "reference": "reference_jpg"},
            ids=("best_image_uid", "image_0_uid", "image_1_uid"),
        ),
        Schema(
            "hpdv2",
            {"prompt": "prompt", "responses": "file_path", "ratings": "human_preference",
             "annotator": "user_hash"},
        ),
        Schema(
            "hpdv2_test",
            {"prompt": "prompt", "responses": "image_path", "ranks": "raw_annotations.rank|rank",
             "annotator": "raw_annotations.user_hash"},
            keys=("rank", "raw_annotations"),
        ),
        *(
            Schema(name, {"prompt": "prompt", "responses": images, "ranks": ranks})
            for name, images, ranks in (
                ("image_reward", "image_path", "rank"),
                ("image_reward_images", "image", "rank"),
                ("image_reward_train", "generations", "ranking"),
            )
        ),
        Schema(
            "image_reward_pair",
            {"prompt": "prompt", "chosen": "img_better", "rejected": "img_worse"},
        ),
        Schema(
            "rapidata",
            {"prompt": "prompt", "a": "image1", "b": "image2",
             "share_a": "weighted_results_image1_preference",
             "share_b": "weighted_results_image2_preference"},
        ),
        Schema(
            "image_folder",
            {"prompt": "prompt", "chosen": "chosen_image", "rejected": "rejected_image", **_NAMED},
            about="two pictures, as paths or bytes",
        ),
        Schema(
            "image_columnar",
            {"prompt": "prompt", **_SIDES, **_NAMED},
            about="the same under our own names",
        ),
    ]  # fmt: skip
    return text + [_as_image(schema) for schema in image]


def _as_image(schema: Schema) -> Schema:
    roles = dict(schema.roles)
    roles.setdefault("reference", "reference_jpg")
    return replace(schema, modality="image", roles=roles)


#: `--format` choices.
ADAPTERS: dict[str, Schema] = {schema.name: schema for schema in _schemas()}


def is_closed(schema: Schema) -> bool:
    """Whether a schema is a known one, whose other columns mean nothing."""
    return schema.name in ADAPTERS and schema.name not in OPEN


def schema_again(name: str, roles: Mapping[str, str], modality: Modality | None) -> Schema:
    """The schema that a dataset was read by: its name, known or not, and the columns it found."""
    base = ADAPTERS.get(name) or Schema(name, {})
    return replace(base, roles=roles, modality=modality or base.modality)
