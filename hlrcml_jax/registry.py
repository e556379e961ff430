"""The names that config keys may have as values; tests compare them with what they name."""

DATASETS = ("ml-100k", "ml-latest-small", "ml-1m", "ml-10m", "ml-20m", "ml-25m", "ml-32m")
LAYOUTS = ("u.data", "ratings.dat", "ratings.csv", "inter", "train_triplets.txt")
LAYOUTS += ("ratings_Books.csv", "yelp_academic_dataset_review.json")
FORMATS = (*LAYOUTS, "delimited", "jsonl", "parquet", "adjacency", "adjacency_counted", "npz")
SPLITS = ("random", "user", "last", "time", "user_time", "users", "given")
WEIGHTS = ("rows", "value")
# Dotted paths of the built-in models and losses.
MODELS = {
    "hlr": "hlrcml_jax.models.hlr:HLR",
    "hlr++": "hlrcml_jax.models.hlr:HLRPlusPlus",
    "hlr-r": "hlrcml_jax.models.residual:ResidualHLR",
    "cml": "hlrcml_jax.models.cml:CML",
    "lrml": "hlrcml_jax.models.lrml:LRML",
    "transcf": "hlrcml_jax.models.transcf:TransCF",
    "adacml": "hlrcml_jax.models.adacml:AdaCML",
    "bpr": "hlrcml_jax.models.bpr:BPR",
    "als": "hlrcml_jax.models.closed_form:ALS",
    "item-knn": "hlrcml_jax.models.closed_form:ItemKNN",
    "ease": "hlrcml_jax.models.closed_form:EASE",
    "popularity": "hlrcml_jax.models.closed_form:Popularity",
}
BASELINE = "popularity"  # every run is compared with it
LOSSES = {
    "hinge": "hlrcml_jax.training.losses:hinge",
    "softmax": "hlrcml_jax.training.losses:softmax",
}
SPACES = ("ball", "sphere")
USER_REPRESENTATIONS = ("vectors", "items")
PREFERENCE_WEIGHTS = ("uniform", "unpop")
NEGATIVE_WEIGHTS = ("uniform", "popularity")
# Of every evaluation beside the METRICS, with which an own metric may not share its name.
OTHER_METRICS = ("ndcg_local", "median_rank", "coverage")
METRICS = ("ndcg", "map", "mrr", "precision", "recall", "hit_rate")
DEFINITIONS = ("standard", "paper")
UNKNOWN = ("error", "skip", "popular")  # what may be done about unknown ids
