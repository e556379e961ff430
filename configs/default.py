"""Every key with its default, as `python -m hlrcml_jax.config` writes it."""

from hlrcml_jax.config import default_config


def get_config():
    config = default_config()
    # seed of initial weights and of all draws in training; at least 0
    config.seed = 2021

    # public data set; '' for your own file: , ml-100k, ml-latest-small, ml-1m, ml-10m, ml-20m,
    # ml-25m, ml-32m
    config.data.name = ""
    # your file; with data.name, a folder that already has its files
    config.data.path = ""
    # auto goes by the file name: auto, u.data, ratings.dat, ratings.csv, inter,
    # train_triplets.txt, ratings_Books.csv, yelp_academic_dataset_review.json, delimited, jsonl,
    # parquet, adjacency, adjacency_counted, npz
    config.data.format = "auto"
    # between fields; one or more characters
    config.data.separator = ","
    # whether the first line holds column names
    config.data.header = True

    # column name or 0-based place; '' looks for the usual names
    config.data.columns.user = ""
    # column name or 0-based place; '' looks for the usual names
    config.data.columns.item = ""
    # rating or count: name or place; '' looks for the usual names
    config.data.columns.value = ""
    # seconds or ISO date: name or place; '' looks for the usual names
    config.data.columns.time = ""

    # least value of a positive; None takes every row
    config.data.threshold = None
    # interactions that a user must keep (n-core)
    config.data.min_per_user = 0
    # interactions that an item must keep (n-core)
    config.data.min_per_item = 0

    # delimited file with the items' titles, if any
    config.data.titles.path = ""
    # between its fields
    config.data.titles.separator = ","
    # whether its first line holds column names
    config.data.titles.header = True
    # column of item ids: name or 0-based place
    config.data.titles.item = ""
    # column of titles: name or 0-based place
    config.data.titles.value = "title"
    # column of categories, if any: name or 0-based place
    config.data.titles.categories = ""
    # between categories
    config.data.titles.category_separator = "|"

    # how parts are chosen (see data/splits.py): random, user, last, time, user_time, users, given
    config.data.split.kind = "user"
    # share of all for validation, in [0, 1)
    config.data.split.valid = 0.2
    # share of all for test, in [0, 1)
    config.data.split.test = 0.2
    # known share of a held-out user's items, in [0, 1)
    config.data.split.history = 0.8
    # share of training that is kept, to study density; in (0, 1]
    config.data.split.keep = 1.0
    # seed of the random kinds and of the cohorts; at least 0
    config.data.split.seed = 2021
    # file of the training part, kind 'given'
    config.data.split.train_path = ""
    # file of the validation part, kind 'given'
    config.data.split.valid_path = ""
    # file of the test part, kind 'given'
    config.data.split.test_path = ""

    # of downloads, data and compiled programs; '' is ~/.cache/hlrcml_jax
    config.data.cache_dir = ""

    # which model: hlr, hlr++, hlr-r, cml, lrml, transcf, adacml, bpr, als, item-knn, ease,
    # popularity
    config.model.name = "hlr"
    # what users are: vectors of their own, or made of their items: vectors, items
    config.model.users = "vectors"
    # D, length of the user and item vectors; at least 1
    config.model.dim = 100
    # M, slots of the relation memory; at least 1
    config.model.memory_slots = 20
    # initial keys: N(0, 1/D) times this; at least 0
    config.model.key_scale = 1.0
    # initial values: N(0, 1/D) times this; at least 0
    config.model.value_scale = 1.0
    # S, most preferences that a relation attends to; >= 1
    config.model.max_prefs = 50
    # how preferences are drawn: uniform, unpop
    config.model.prefs_sampling = "uniform"
    # power of the attention's denominator; above 0
    config.model.beta = 1.0
    # of adacml's and hlr-r's attention to what is like the target
    config.model.sharpness = 1.0
    # radius of the ball of user and item rows; above 0
    config.model.clip_norm = 1.0
    # bound the rows of the memory's keys and values by 1 too
    config.model.clip_memory = False
    # bound of the value rows; None: free
    config.model.memory_radius = None

    # weight of its neighbourhood regulariser
    config.model.transcf.weight_neighbours = 0.1
    # weight of its distance regulariser
    config.model.transcf.weight_distance = 0.1

    # weight decay of user and positive vectors
    config.model.bpr.l2_vector = 0.0025
    # weight decay of the negative's vector
    config.model.bpr.l2_negative = 0.00025
    # weight decay of biases
    config.model.bpr.l2_bias = 0.001

    # of users and items
    config.model.als.regularization = 30.0
    # alternations; at least 1
    config.model.als.iterations = 20

    # of two items: cosine, tfidf, bm25
    config.model.item_knn.similarity = "cosine"
    # of each item, itself among them; at least 1
    config.model.item_knn.neighbours = 50

    # regularisation, in interactions; above 0
    config.model.ease.l2 = 500.0

    # user vectors: a workdir, .npz or .npy (see pretrained.py)
    config.pretrained.users = ""
    # item vectors, likewise
    config.pretrained.items = ""
    # tables that are not trained: , users, items, both
    config.pretrained.freeze = ""

    # of a positive and its negatives: hinge, softmax
    config.loss.kind = "hinge"
    # margin of the hinge, in squared distance; above 0
    config.loss.margin = 0.2
    # of the softmax, in squared distance; above 0
    config.loss.temperature = 0.3
    # the negative uses the positive's relation
    config.loss.copy_relation = False

    # N, negatives drawn for each positive; at least 1
    config.negatives.candidates = 1
    # how many of them count, the hardest ones; 0: all
    config.negatives.hardest = 0
    # how they are drawn: uniform, popularity
    config.negatives.weights = "uniform"
    # whether the examples of a batch share them
    config.negatives.shared = False
    # softmax: weigh them so that they stand for the catalogue (log q correction)
    config.negatives.correction = False

    # learning rate of Adam; above 0
    config.optimizer.learning_rate = 0.0002
    # tables' rows updated in a step: all, or those touched: dense, lazy
    config.optimizer.rows = "dense"
    # of the learning rate: constant, exponential, cosine
    config.optimizer.schedule = "constant"
    # factor of an epoch, schedule 'exponential'; in (0, 1]
    config.optimizer.decay = 0.98
    # epochs down to 0, schedule 'cosine'; at least 1
    config.optimizer.cosine_epochs = 100
    # epochs of linear growth from 0, before it
    config.optimizer.warmup_epochs = 0
    # bound of the global norm of a batch's gradient; None: free
    config.optimizer.clip_gradient = None

    # tables and interactions: on every device, or divided between all: replicated, sharded
    config.parallel.tables = "replicated"

    # most epochs; at least 1
    config.train.epochs = 100
    # positives a step, over all devices; at least 1
    config.train.batch_size = 1000
    # epochs between validations and checkpoints
    config.train.validate_every = 1

    # chosen on validation: 'loss', or a metric@k
    config.early_stopping.metric = "ndcg@10"
    # validations without a better value before it stops
    config.early_stopping.patience = 10

    # the k of every metric; 0 is the whole ranking (metric@all)
    config.evaluation.cutoffs = (1, 5, 10, 20)
    # trec_eval's metrics, or the paper's own: standard, paper
    config.evaluation.definitions = "standard"
    # users with fewer test items are left out; 'k': at each k those with fewer than k
    config.evaluation.min_test_items = "1"
    # what test does not rank: train+valid, train
    config.evaluation.known = "train+valid"
    # groups of users behind ± ; at least 1
    config.evaluation.n_cohorts = 5
    # most users in a group
    config.evaluation.cohort_size = 10000

    # working memory of full-catalogue scoring, MiB
    config.scoring.memory_mb = 256
    # type in which relations of item pairs wait: float32, bfloat16, float16
    config.scoring.storage = "float32"
    # most users at a time; 0: what memory_mb allows
    config.scoring.batch_size = 0

    # most test interactions whose relations are compared
    config.analyse.interactions = 20000

    # items for each user; at least 1
    config.recommend.k = 10
    # comma-separated user ids, '' for all
    config.recommend.users = ""
    # comma-separated ids to choose from, '' for all
    config.recommend.only_items = ""
    # of each item (--mode=explain); 0: all
    config.recommend.reasons = 3
    # format of the file: parquet, csv, jsonl
    config.recommend.format = "parquet"
    return config
