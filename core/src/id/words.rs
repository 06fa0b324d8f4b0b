//! Words for generated job names. Friendly, short, lower case, without ambiguity.

pub(super) const ADJECTIVES: [&str; 64] = [
    "amber", "ample", "ashy", "blue", "bold", "brave", "bright", "brisk", "calm", "clever", "cool",
    "coral", "cosy", "crisp", "dapper", "deft", "eager", "early", "fair", "fine", "fresh",
    "gentle", "gifted", "glad", "golden", "good", "green", "happy", "honest", "icy", "ivory",
    "jolly", "keen", "kind", "lemon", "light", "lively", "lucky", "lunar", "merry", "mild",
    "modest", "neat", "noble", "olive", "patient", "plucky", "polite", "proud", "quick", "quiet",
    "red", "rosy", "serene", "sharp", "silver", "solar", "steady", "sunny", "swift", "tidy",
    "upbeat", "warm", "wise",
];

pub(super) const NOUNS: [&str; 64] = [
    "anchor", "apple", "arch", "atlas", "badge", "basil", "beacon", "bell", "berry", "birch",
    "brush", "candle", "canvas", "cedar", "cello", "chalk", "cloud", "comet", "crane", "drum",
    "eagle", "easel", "falcon", "fern", "fig", "flute", "forest", "garden", "glove", "grape",
    "harbor", "hazel", "heron", "ink", "island", "kettle", "lantern", "leaf", "lemur", "lily",
    "lime", "maple", "meadow", "moon", "night", "oak", "orange", "orchid", "otter", "peach",
    "pear", "pebble", "pillow", "plum", "prism", "quill", "raven", "river", "sail", "spoon",
    "stone", "thread", "tulip", "whale",
];
