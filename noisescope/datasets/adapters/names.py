"""The usual names of columns, by the role that they play. Compared as `cells.key` writes them."""

from __future__ import annotations

import re

#: Schemas of the two usual columns, which are recognised by what these hold.
USUAL = {"hh_rlhf", "ultrafeedback", "ultrafeedback_argilla", "trl", "columnar",
          "columnar_label", "image_columnar", "trl_vision"}  # fmt: skip
#: Known schemas whose other columns are looked for by their usual names.
OPEN = USUAL | {"image_folder", "openai", "stack_exchange_paired", "ms_swift", "ms_swift_query"}
#: Usual names of a prompt, the likeliest first.
PROMPTS = (
    "prompt", "question", "instruction", "query", "user_prompt", "prompt_text", "user_input",
    "user_message", "problem", "task", "caption", "post", "input", "inputs", "user", "context",
    "conversation", "conversations", "dialogue", "dialog", "messages", "history", "text_prompt",
    "source_text", "src",
)  # fmt: skip
#: Those that are a prompt whatever other columns there are.
SURE = frozenset(PROMPTS[: PROMPTS.index("task")])
#: Keys of the text of a prompt that is an object.
INNER = ("full_text", "text", "content", "prompt", "question")
#: Usual names of what else precedes the responses.
OPENINGS: dict[str, tuple[str, ...]] = {
    "system": ("system", "system_prompt", "system_message", "system_text"),
    "tools": ("tools", "functions", "available_tools", "tool_definitions"),
    "history": ("history", "chat_history", "conversation_history", "dialogue_history"),
    "context": ("context", "background", "passage", "document", "article"),
}
MORE: dict[str, tuple[str, ...]] = {
    "annotator": ("annotator", "annotator_id", "worker", "worker_id", "rater", "rater_id",
                  "labeler", "labeler_id", "labeller"),
    "pair_id": ("pair_id",),
    "group": ("group", "group_id"),
    "reference": ("reference_jpg",),
}  # fmt: skip
#: Names of text that changes what a response answers to, if it is not read.
CONTEXTS = re.compile(
    r"(?:^|_)(?:contexts?|history|system|tools?|functions?|documents?|passages?|articles?|"
    r"evidence|criteria|criterion|rubrics?|instructions|previous|premise|references?|trajectory|"
    r"steps?|prefix|dialogue?|conversations?|messages|background|story|scenario|persona|"
    r"few_shot|turns|post|prompt|question|instruction|query|problem|input)(?:$|_)"
)
WINS = {"chosen": "rejected", "preferred": "dispreferred", "accepted": "rejected",
         "winner": "loser", "win": "lose", "better": "worse", "winning": "losing",
         "selected": "rejected"}  # fmt: skip
#: Opposites that are offered, not assumed.
LIKELY = {"good": "bad", "positive": "negative", "pos": "neg", "best": "worst", "j": "k",
           "preferred": "non_preferred", "preferred_": "unpreferred", "right": "wrong",
           "clean": "noisy", "up": "down"}  # fmt: skip
NOUNS = (
    "", "response", "answer", "output", "completion", "text", "conversation", "conversations",
    "message", "messages", "reply", "summary", "image", "img", "candidate", "option", "generation",
    "model_output", "human_ref", "code", "story", "sample", "jpg", "turn", "content", "summaries",
    "solution", "translation", "picture",
)  # fmt: skip
TAGS = (("a", "b"), ("1", "2"), ("0", "1"), ("first", "second"), ("left", "right"), ("i", "ii"))
PREFERENCES = (
    "winner", "preference", "preferred", "preferred_response", "choice", "label", "labels",
    "better", "better_response", "better_response_id", "verdict", "judgement", "judgment",
    "overall_preference", "preference_strength", "human_preference", "preferred_id", "selected",
    "chosen", "winning_response", "winner_model", "result", "outcome", "vote", "best", "answer",
    "preferred_output", "preferred_model", "gold", "gold_label", "target", "human_label",
)  # fmt: skip
SCORES = {"score", "rating", "reward", "points", "grade", "quality"}
OF_SCORES = SCORES | {"avg", "average", "mean", "overall", "final", "human", "gpt4", "value"}
MARGINS = ("margin", "score_margin", "rating_margin", "reward_margin", "score_diff",
            "score_difference", "rating_difference", "score_gap")  # fmt: skip
STATUS = ("status", "winner", "outcome", "result", "verdict", "preference", "label")
#: Columns that state by themselves that a row is a tie, and those that count votes for one.
TIES = ("is_tie", "tie", "tied", "is_tied", "is_draw", "draw")
TIE_VOTES = ("votes_tie", "tie_votes", "vote_tie", "votes_ties", "tie", "ties")
#: Columns that hold an image (or a film, or sound) that texts may be about.
MEDIA = re.compile(
    r"(?:^|_)(?:images?|img|pictures?|photos?|pixels?|videos?|audios?|frames?)(?:$|_)"
)
LISTS = ("responses", "completions", "answers", "outputs", "candidates", "generations",
          "summaries", "images", "image", "replies", "options", "image_path", "file_path",
          "file_paths", "image_paths")  # fmt: skip
TEXT_KEYS = ("response", "answer", "completion", "text", "content", "output", "summary", "image")
RANKS = ("rank", "ranks", "ranking", "rankings")
RATINGS = ("ratings", "scores", "rewards", "score", "rating", "overall_score", "reward",
            "human_preference")  # fmt: skip
#: Our own columns, which distinguish `columnar` from `trl`.
OWN = ("annotator", "pair_id", "label")
#: Usual names of a column of ids of the user's own, in lower case.
OWN_IDS = (
    "id", "uid", "uuid", "guid", "example_id", "sample_id", "row_id", "item_id", "pair_uid",
    "comparison_id",
)  # fmt: skip
IMAGE_NAME = re.compile(r"[^\s<>|*?\"]+\.(?:png|jpe?g|webp|gif|bmp)", re.IGNORECASE)
URL = re.compile(r"https?://\S+|data:image/\S+")
#: Names of columns that describe a row and are never a prompt.
ABOUT = re.compile(
    r"(?:^|_)(?:id|ids|uid|idx|index|source|model|models|dataset|subset|split|language|lang|"
    r"timestamp|time|date|created|updated|category|type|license|url|tag|tags|domain|score|rating|"
    r"feedback|critique|critiques|rationale|rationales|reason|reasons|reasoning|explanation|"
    r"comment|comments|justification|elaboration|statement|author|title|name|topic)(?:$|_)"
)
