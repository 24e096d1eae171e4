// The command's own tree of subcommands and options, as shell completion and as a man page: one source for both.
#pragma once

#include <string>

#include <CLI/CLI.hpp>

namespace safering::tools {

/// `shell`: "bash", "zsh" or "fish". A script to be sourced or put where the shell looks for completions.
std::string completion_script(const CLI::App& app, const std::string& shell);

/// safering(1) in troff with the man macros.
std::string man_page(const CLI::App& app, const std::string& version);

} // namespace safering::tools
