//! The regular expressions of llama.cpp's pre-tokenizers, and the names that stand for them.
//!
//! A new name is a row of [`TABLE`]; its expression, if no other model has it, a rule above.

use super::super::unicode::{LETTER, MARK, NUMBER, PUNCTUATION, SPACE, SYMBOL};
use super::{ASCII_DIGIT, After, Alt, Before, Chars, PreTokenizer, Ranges, Rule};

const LINE_END: Chars = Chars::In(0, &[(0x0a, 0x0a), (0x0d, 0x0d)]);
const LETTERS: Chars = Chars::Class(LETTER);
const NUMBERS: Chars = Chars::Class(NUMBER);
/// `[^\s\p{L}\p{N}]`
const OTHER: Chars = Chars::Not(SPACE | LETTER | NUMBER);

/// `[一-龥ࠀ-一가-퟿]`
const DEEPSEEK_CJK: Chars = Chars::In(0, &[(0x0800, 0x9fa5), (0xac00, 0xd7ff)]);
/// `[一-龥぀-ゟ゠-ヿ]`
const CHINESE_JAPANESE: Chars = Chars::In(0, &[(0x4e00, 0x9fa5), (0x3040, 0x30ff)]);
/// Han ideographs by block.
const HAN: Ranges = &[
    (0x4e00, 0x9fff),
    (0x3400, 0x4dbf),
    (0x20000, 0x2a6df),
    (0x2a700, 0x2ebef),
    (0xf900, 0xfaff),
    (0x2f800, 0x2fa1f),
];
/// `[^(\s|.,!?…。，、।۔،)]`
const BLOOM_BODY: Chars = Chars::NotIn(
    SPACE,
    &[
        (0x28, 0x29),
        (0x7c, 0x7c),
        (0x2e, 0x2e),
        (0x2c, 0x2c),
        (0x21, 0x21),
        (0x3f, 0x3f),
        (0x2026, 0x2026),
        (0x3001, 0x3002),
        (0xff0c, 0xff0c),
        (0x0964, 0x0964),
        (0x06d4, 0x06d4),
        (0x060c, 0x060c),
    ],
);
/// Cased letters of the scripts that DeepSeek LLM's tokenizer lists.
#[rustfmt::skip]
const DEEPSEEK_LETTERS: Chars = Chars::In(0, &[
    (0x41, 0x5a), (0x61, 0x7a), (0xb5, 0xb5), (0xc0, 0xd6), (0xd8, 0xf6),
    (0xf8, 0x1ba), (0x1bc, 0x1bf), (0x1c4, 0x293), (0x295, 0x2af), (0x370, 0x373),
    (0x376, 0x377), (0x37b, 0x37d), (0x37f, 0x37f), (0x386, 0x386), (0x388, 0x38a),
    (0x38c, 0x38c), (0x38e, 0x3a1), (0x3a3, 0x3f5), (0x3f7, 0x481), (0x48a, 0x52f),
    (0x531, 0x556), (0x10a0, 0x10c5), (0x13a0, 0x13f5), (0x13f8, 0x13fd), (0x1c90, 0x1cba),
    (0x1cbd, 0x1cbf), (0x1d00, 0x1d2b), (0x1d6b, 0x1d77), (0x1d79, 0x1d9a), (0x1e00, 0x1f15),
    (0x1f18, 0x1f1d), (0x1f20, 0x1f45), (0x1f48, 0x1f4d), (0x1f50, 0x1f57), (0x1f59, 0x1f59),
    (0x1f5b, 0x1f5b), (0x1f5d, 0x1f5d), (0x1f5f, 0x1f7d), (0x1f80, 0x1fb4), (0x1fb6, 0x1fbc),
    (0x1fbe, 0x1fbe), (0x1fc2, 0x1fc4), (0x1fc6, 0x1fcc), (0x1fd0, 0x1fd3), (0x1fd6, 0x1fdb),
    (0x1fe0, 0x1fec), (0x1ff2, 0x1ff4), (0x1ff6, 0x1ffc), (0x2102, 0x2102), (0x2107, 0x2107),
    (0x210a, 0x2113), (0x2115, 0x2115), (0x2119, 0x211d), (0x2124, 0x2124), (0x2126, 0x2126),
    (0x2128, 0x2128), (0x212a, 0x212d), (0x212f, 0x2134), (0x2139, 0x2139), (0x213c, 0x213f),
    (0x2145, 0x2149), (0x214e, 0x214e), (0x2183, 0x2184), (0x2c00, 0x2c7b), (0x2c7e, 0x2ce4),
    (0x2ceb, 0x2cee), (0x2cf2, 0x2cf3), (0xa640, 0xa66d), (0xa680, 0xa69b), (0xa722, 0xa76f),
    (0xa771, 0xa787), (0xa78b, 0xa78e), (0xab70, 0xabbf), (0xfb00, 0xfb06), (0xfb13, 0xfb17),
    (0xff21, 0xff3a), (0xff41, 0xff5a), (0x10400, 0x1044f), (0x104b0, 0x104d3), (0x104d8, 0x104fb),
    (0x10c80, 0x10cb2), (0x10cc0, 0x10cf2), (0x118a0, 0x118df), (0x1e900, 0x1e943),
]);
/// `[!-/:-~！-／：-～‘-‟　-。]`
const DEEPSEEK_MARKS: Chars = Chars::In(
    0,
    &[
        (0x21, 0x2f),
        (0x3a, 0x7e),
        (0xff01, 0xff0f),
        (0xff1a, 0xff5e),
        (0x2018, 0x201f),
        (0x3000, 0x3002),
    ],
);
/// `[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]`; the third range starts at U+8C48.
const AFMOE_ASIAN: Chars = Chars::In(
    0,
    &[
        (0x3400, 0x4dbf),
        (0x4e00, 0xfaff),
        (0x3040, 0x30ff),
        (0xff65, 0xff9f),
        (0x2f00, 0x2fdf),
        (0x0e40, 0x0eff),
        (0x1780, 0x17ff),
        (0x1000, 0x109f),
        (0x1100, 0x11ff),
    ],
);

const fn run(before: Before, body: Chars, after: After) -> Alt {
    Alt::Run { before, body, after }
}
const fn word(body: Chars) -> Alt {
    Alt::Word { not_after: LETTER | NUMBER, body, contraction: false }
}

const CONTRACTION: Alt = Alt::Contraction { any_case: true };
const SPACES: Alt = run(Before::Nothing, Chars::Class(SPACE), After::Nothing);

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
const GPT2: Rule = Rule::Match(&[
    Alt::Contraction { any_case: false },
    run(Before::Space, LETTERS, After::Nothing),
    run(Before::Space, NUMBERS, After::Nothing),
    run(Before::Space, OTHER, After::Nothing),
    Alt::SpacesBeforeWord,
    SPACES,
]);

/// `(?i:'s|...)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
const LLAMA3: Rule = Rule::Match(&[
    CONTRACTION,
    word(LETTERS),
    Alt::UpTo(3, NUMBERS),
    run(Before::Space, OTHER, After::LineEnds),
    Alt::LineEnds,
    Alt::SpacesBeforeWord,
    SPACES,
]);

/// Llama 3's with single digits.
const QWEN2: Rule = Rule::Match(&[
    CONTRACTION,
    word(LETTERS),
    Alt::UpTo(1, NUMBERS),
    run(Before::Space, OTHER, After::LineEnds),
    Alt::LineEnds,
    Alt::SpacesBeforeWord,
    SPACES,
]);

/// Qwen 2's without contractions.
const UFAKZEKA: Rule = Rule::Match(&[
    word(LETTERS),
    Alt::UpTo(1, NUMBERS),
    run(Before::Space, OTHER, After::LineEnds),
    Alt::LineEnds,
    Alt::SpacesBeforeWord,
    SPACES,
]);

/// Qwen 2's with marks as part of words.
const QWEN35: Rule = Rule::Match(&[
    CONTRACTION,
    word(Chars::Class(LETTER | MARK)),
    Alt::UpTo(1, NUMBERS),
    run(Before::Space, Chars::Not(SPACE | LETTER | MARK | NUMBER), After::LineEnds),
    Alt::LineEnds,
    Alt::SpacesBeforeWord,
    SPACES,
]);

/// Qwen 2's, but punctuation takes no line ends along.
const SEED_CODER: Rule = Rule::Match(&[
    CONTRACTION,
    word(LETTERS),
    Alt::UpTo(1, NUMBERS),
    run(Before::Space, OTHER, After::Nothing),
    Alt::LineEnds,
    Alt::SpacesBeforeWord,
    SPACES,
]);

/// Llama 3's with numbers of any length, which the rule before it has cut.
const MINICPM5: Rule = Rule::Match(&[
    CONTRACTION,
    word(LETTERS),
    run(Before::Nothing, NUMBERS, After::Nothing),
    run(Before::Space, OTHER, After::LineEnds),
    Alt::LineEnds,
    Alt::SpacesBeforeWord,
    SPACES,
]);

/// Llama 3's with white space cut into powers of two.
const JAIS2: Rule = Rule::Match(&[
    CONTRACTION,
    word(LETTERS),
    Alt::UpTo(3, NUMBERS),
    run(Before::Space, OTHER, After::LineEnds),
    Alt::LineEnds,
    Alt::SpacesByPowersOfTwo,
]);

/// Qwen 2's with marks in words, words that go on after a space, and at most one line end or slash
/// after punctuation.
const EXAONE_MOE: Rule = Rule::Match(&[
    CONTRACTION,
    Alt::WordsWithSpaces,
    Alt::UpTo(1, NUMBERS),
    run(Before::Space, OTHER, After::LineEndOrSlash),
    Alt::LineEnds,
    Alt::SpacesBeforeWord,
    SPACES,
]);

const TEKKEN: Rule = Rule::Match(&[
    Alt::CasedWord { letters: LETTER, contraction: false },
    Alt::UpTo(1, NUMBERS),
    run(Before::Space, OTHER, After::LineEndsOrSlashes),
    Alt::LineEnds,
    Alt::SpacesBeforeWord,
    SPACES,
]);

const GPT4O: Rule = Rule::Match(&[
    Alt::CasedWord { letters: LETTER, contraction: true },
    Alt::UpTo(3, NUMBERS),
    run(Before::Space, OTHER, After::LineEndsOrSlashes),
    Alt::LineEnds,
    Alt::SpacesBeforeWord,
    SPACES,
]);

/// GPT-4o's with marks as part of words.
const GRANITE_EMBEDDING: Rule = Rule::Match(&[
    Alt::CasedWord { letters: LETTER | MARK, contraction: true },
    Alt::UpTo(3, NUMBERS),
    run(Before::Space, OTHER, After::LineEndsOrSlashes),
    Alt::LineEnds,
    Alt::SpacesBeforeWord,
    SPACES,
]);

/// GPT-4o's original expression, whose cases the reference engine cannot tell apart.
const TINY_AYA: Rule = Rule::Match(&[
    Alt::Word { not_after: LETTER | NUMBER, body: Chars::Class(LETTER | MARK), contraction: true },
    Alt::UpTo(3, NUMBERS),
    run(Before::Space, OTHER, After::LineEndsOrSlashes),
    Alt::LineEnds,
    Alt::SpacesBeforeWord,
    SPACES,
]);

/// Tiny Aya's with single digits.
const YOUTU: Rule = Rule::Match(&[
    Alt::Word { not_after: LETTER | NUMBER, body: Chars::Class(LETTER | MARK), contraction: true },
    Alt::UpTo(1, NUMBERS),
    run(Before::Space, OTHER, After::LineEndsOrSlashes),
    Alt::LineEnds,
    Alt::SpacesBeforeWord,
    SPACES,
]);

/// Hangul, Chinese punctuation, Bopomofo, and Chinese or Japanese apart from each other.
const YOUTU_SCRIPTS: Rule = Rule::Match(&[
    run(Before::Nothing, Chars::In(0, &[(0xac00, 0xd7a3), (0x3131, 0x318e)]), After::Nothing),
    run(
        Before::Nothing,
        Chars::In(
            0,
            &[
                (0xff01, 0xff01),
                (0x2026, 0x2026),
                (0x201c, 0x201d),
                (0x2018, 0x2019),
                (0x2014, 0x2014),
                (0xff1a, 0xff1b),
                (0xff0c, 0xff0c),
                (0x3001, 0x303f),
                (0xfe30, 0xfe4f),
            ],
        ),
        After::Nothing,
    ),
    run(Before::Nothing, Chars::In(0, &[(0x3105, 0x312f)]), After::Nothing),
    run(Before::Nothing, CHINESE_JAPANESE, After::Nothing),
]);

const KIMI_K2: Rule = Rule::Match(&[
    run(Before::Nothing, Chars::In(0, HAN), After::Nothing),
    Alt::Word { not_after: LETTER | NUMBER, body: Chars::Except(LETTER, HAN), contraction: true },
    Alt::UpTo(3, NUMBERS),
    run(Before::Space, OTHER, After::LineEnds),
    Alt::LineEnds,
    Alt::SpacesBeforeWord,
    SPACES,
]);

const MARKS_AND_SYMBOLS: Chars = Chars::Class(PUNCTUATION | SYMBOL);
const DEEPSEEK3_WORD: Alt = Alt::Word {
    not_after: LETTER | PUNCTUATION | SYMBOL,
    body: Chars::Class(LETTER | MARK),
    contraction: false,
};

const DEEPSEEK3: Rule = Rule::Match(&[
    Alt::MarkAndAsciiWord,
    DEEPSEEK3_WORD,
    run(Before::Space, MARKS_AND_SYMBOLS, After::LineEnds),
    Alt::LineEnds,
    Alt::SpacesBeforeWord,
    SPACES,
]);

const SPARK2_5: Rule = Rule::Match(&[
    Alt::MarkAndAsciiWord,
    DEEPSEEK3_WORD,
    run(Before::Space, MARKS_AND_SYMBOLS, After::Nothing),
    Alt::Exactly(1, LINE_END),
    Alt::SpacesBeforeWord,
    SPACES,
]);

const BLOOM: Rule = Rule::Match(&[run(Before::Space, BLOOM_BODY, After::Nothing)]);
/// `[\r\n]`
const EACH_LINE_END: Rule = Rule::Match(&[Alt::Exactly(1, LINE_END)]);
/// `\p{N}`
const EACH_NUMBER: Rule = Rule::Match(&[Alt::Exactly(1, NUMBERS)]);
/// `\p{N}+`
const NUMBER_RUNS: Rule = Rule::Match(&[run(Before::Nothing, NUMBERS, After::Nothing)]);
/// `\p{N}{1,3}`
const UP_TO_3_NUMBERS: Rule = Rule::Match(&[Alt::UpTo(3, NUMBERS)]);
/// `[0-9][0-9][0-9]`
const THREE_DIGITS: Rule = Rule::Match(&[Alt::Exactly(3, ASCII_DIGIT)]);
/// `[^\n]+|[\n]+`
const LINES: Rule = Rule::Match(&[
    run(Before::Nothing, Chars::NotIn(0, &[(0x0a, 0x0a)]), After::Nothing),
    run(Before::Nothing, Chars::In(0, &[(0x0a, 0x0a)]), After::Nothing),
]);
/// `[\p{P}$+<=>^~|]+`
const DEFAULT_MARKS: Rule = Rule::Match(&[run(
    Before::Nothing,
    Chars::In(
        PUNCTUATION,
        &[(0x24, 0x24), (0x2b, 0x2b), (0x3c, 0x3e), (0x5e, 0x5e), (0x7e, 0x7e), (0x7c, 0x7c)],
    ),
    After::Nothing,
)]);
/// The same with a backtick.
const FALCON_MARKS: Rule = Rule::Match(&[run(
    Before::Nothing,
    Chars::In(
        PUNCTUATION,
        &[
            (0x24, 0x24),
            (0x2b, 0x2b),
            (0x3c, 0x3e),
            (0x5e, 0x5e),
            (0x7e, 0x7e),
            (0x7c, 0x7c),
            (0x60, 0x60),
        ],
    ),
    After::Nothing,
)]);
const CHINESE_JAPANESE_RUNS: Rule =
    Rule::Match(&[run(Before::Nothing, CHINESE_JAPANESE, After::Nothing)]);
const DEEPSEEK_CJK_RUNS: Rule = Rule::Match(&[run(Before::Nothing, DEEPSEEK_CJK, After::Nothing)]);

const DEEPSEEK3_RULES: &[Rule] = &[UP_TO_3_NUMBERS, CHINESE_JAPANESE_RUNS, DEEPSEEK3];

const SENTINELS: Rule = Rule::Match(&[Alt::Sentinel]);
const IMAGE_TOKENS: Rule = Rule::Match(&[Alt::ImageToken]);
/// `[\t\n]|    |  `
const TABS: Rule = Rule::Match(&[
    Alt::Exactly(1, Chars::In(0, &[(0x09, 0x0a)])),
    Alt::Literal("    "),
    Alt::Literal("  "),
]);
/// `[\p{P}!-/:-@\[-`{-~]`
const EACH_MARK: Rule = Rule::Match(&[Alt::Exactly(
    1,
    Chars::In(PUNCTUATION, &[(0x21, 0x2f), (0x3a, 0x40), (0x5b, 0x60), (0x7b, 0x7e)]),
)]);

/// `\S+`
const NON_SPACES: Rule = Rule::Match(&[run(Before::Nothing, Chars::Not(SPACE), After::Nothing)]);

/// All names of `tokenizer.ggml.pre`.
pub(super) const TABLE: &[(&[&str], PreTokenizer)] = &[
    (&["default"], PreTokenizer::new(&[DEFAULT_MARKS, GPT2, NUMBER_RUNS, THREE_DIGITS])),
    (
        &[
            "llama3",
            "llama-v3",
            "llama-bpe",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        PreTokenizer::new(&[LLAMA3]).ignore_merges().add_bos(),
    ),
    (&["minicpm5"], PreTokenizer::new(&[UP_TO_3_NUMBERS, MINICPM5]).ignore_merges()),
    (
        &["deepseek-llm"],
        PreTokenizer::new(&[
            EACH_LINE_END,
            Rule::Match(&[run(Before::AnySpace, DEEPSEEK_LETTERS, After::Nothing)]),
            Rule::Match(&[run(Before::AnySpace, DEEPSEEK_MARKS, After::Nothing)]),
            Rule::Match(&[Alt::SpacesAtEnd]),
            DEEPSEEK_CJK_RUNS,
            NUMBER_RUNS,
        ])
        .exact_spaces(),
    ),
    (
        &["deepseek-coder"],
        PreTokenizer::new(&[
            EACH_LINE_END,
            Rule::Match(&[run(Before::AnySpace, LETTERS, After::Nothing)]),
            Rule::Match(&[run(Before::AnySpace, Chars::Class(PUNCTUATION), After::Nothing)]),
            DEEPSEEK_CJK_RUNS,
            EACH_NUMBER,
        ])
        .exact_spaces(),
    ),
    (
        &["deepseek-v3", "hunyuan-dense", "hy_v4", "joyai-llm"],
        PreTokenizer::new(DEEPSEEK3_RULES).exact_spaces(),
    ),
    (
        &["spark2_5"],
        PreTokenizer::new(&[UP_TO_3_NUMBERS, CHINESE_JAPANESE_RUNS, SPARK2_5, EACH_NUMBER])
            .exact_spaces(),
    ),
    (&["youtu"], PreTokenizer::new(&[YOUTU_SCRIPTS, YOUTU]).exact_spaces().ignore_merges()),
    (&["falcon"], PreTokenizer::new(&[FALCON_MARKS, GPT2, THREE_DIGITS])),
    (
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "mpt",
            "olmo",
            "jais",
            "exaone4",
        ],
        PreTokenizer::new(&[GPT2]),
    ),
    (
        &["jina-v1-en", "jina-v2-code", "roberta-bpe"],
        PreTokenizer { add_sep: true, ..PreTokenizer::new(&[GPT2]) },
    ),
    (&["trillion", "granite-docling"], PreTokenizer::new(&[GPT2]).exact_spaces()),
    (
        &["starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"],
        PreTokenizer::new(&[EACH_NUMBER, GPT2]),
    ),
    (&["command-r", "smollm"], PreTokenizer::new(&[EACH_NUMBER, GPT2]).exact_spaces()),
    (
        &["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "hunyuan", "grok-2", "solar-open"],
        PreTokenizer::new(&[QWEN2]).exact_spaces(),
    ),
    (&["stablelm2", "megrez"], PreTokenizer::new(&[QWEN2])),
    (&["qwen35"], PreTokenizer::new(&[QWEN35]).exact_spaces()),
    (&["laguna"], PreTokenizer::new(&[LINES, QWEN2]).exact_spaces()),
    (&["ufakzeka"], PreTokenizer::new(&[UFAKZEKA]).exact_spaces()),
    (&["bailingmoe", "bailingmoe2", "llada-moe"], PreTokenizer::new(&[QWEN2]).exact_spaces()),
    (&["seed-coder"], PreTokenizer::new(&[SEED_CODER]).exact_spaces()),
    (&["dbrx", "smaug-bpe"], PreTokenizer::new(&[LLAMA3])),
    (&["chatglm-bpe"], PreTokenizer { no_default_bos: true, ..PreTokenizer::new(&[LLAMA3]) }),
    (
        &["glm4", "glm5"],
        PreTokenizer { no_default_bos: true, ..PreTokenizer::new(&[LLAMA3]) }.ignore_merges(),
    ),
    (&["jais-2"], PreTokenizer::new(&[JAIS2])),
    (&["bloom", "gpt3-finnish"], PreTokenizer::new(&[BLOOM])),
    (&["poro-chat"], PreTokenizer::new(&[BLOOM]).exact_spaces()),
    (&["viking"], PreTokenizer::new(&[BLOOM, EACH_NUMBER]).exact_spaces()),
    (&["tekken"], PreTokenizer::new(&[TEKKEN]).exact_spaces().ignore_merges().add_bos()),
    (
        &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        PreTokenizer::new(&[GPT4O]).exact_spaces(),
    ),
    (
        &["granite-embed-multi-97m"],
        PreTokenizer::new(&[GRANITE_EMBEDDING]).exact_spaces().ignore_merges(),
    ),
    (&["tiny_aya", "cohere2moe"], PreTokenizer::new(&[Rule::DigitGroups, TINY_AYA]).exact_spaces()),
    (&["superbpe"], PreTokenizer::new(&[NUMBER_RUNS, Rule::Thousands]).exact_spaces()),
    (&["exaone-moe"], PreTokenizer::new(&[EXAONE_MOE])),
    (
        &["chameleon"],
        PreTokenizer::new(&[SENTINELS, IMAGE_TOKENS, TABS, EACH_NUMBER, EACH_MARK, GPT2])
            .exact_spaces()
            .add_bos(),
    ),
    (&["kimi-k2"], PreTokenizer::new(&[KIMI_K2]).exact_spaces()),
    (
        &["afmoe"],
        PreTokenizer::new(&[
            Rule::DigitGroups,
            Rule::Match(&[run(Before::Nothing, AFMOE_ASIAN, After::Nothing)]),
            DEEPSEEK3,
        ])
        .exact_spaces(),
    ),
    (
        &["gemma4", "granite-embed-multi-311m"],
        PreTokenizer {
            byte_level: false,
            escape_spaces: true,
            gemma4: true,
            ..PreTokenizer::new(&[LINES])
        },
    ),
    (
        &["sarvam-moe"],
        PreTokenizer { byte_level: false, escape_spaces: true, ..PreTokenizer::new(&[LINES]) }
            .exact_spaces(),
    ),
    (&["whitespace"], PreTokenizer { byte_level: false, ..PreTokenizer::new(&[NON_SPACES]) }),
];
