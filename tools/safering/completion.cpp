// `safering completion SHELL` and `safering man`: the command described to shells and to man(1).

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "command.hpp"
#include "describe.hpp"

namespace safering::tools {

void add_completion(CLI::App& app, CommonOptions&, Action& action) {
    auto* command = app.add_subcommand("completion", "Print the completion script of a shell");
    command->footer("Example: safering completion bash > /etc/bash_completion.d/safering\n"
                    "Example: source <(safering completion zsh)\n"
                    "Example: safering completion fish > ~/.config/fish/completions/safering.fish");
    auto shell = std::make_shared<std::string>();
    command->add_option("SHELL", *shell, "bash, zsh or fish")->type_name("SHELL")->required();
    command->callback([&app, &action, shell] {
        if (std::ranges::find(shell_names, *shell) == shell_names.end())
            throw CLI::ValidationError(
                fmt::format("\"{}\" is none of {}", escaped(*shell), fmt::join(shell_names, ", ")));
        action = [&app, shell] {
            fmt::print("{}", completion_script(app, *shell));
            return exit_good;
        };
    });
}

void add_man(CLI::App& app, CommonOptions&, Action& action) {
    auto* command = app.add_subcommand("man", "Print the manual page");
    command->footer("Example: safering man | man -l -");
    command->callback([&app, &action] {
        action = [&app] {
            fmt::print("{}", man_page(app, SAFERING_VERSION));
            return exit_good;
        };
    });
}

} // namespace safering::tools
