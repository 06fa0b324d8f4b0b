//! `${{ }}` and `$[[ ]]`: lexer, parser, and evaluation over an explicit environment.
