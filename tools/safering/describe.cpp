#include "describe.hpp"

#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "command.hpp"

namespace safering::tools {

namespace {

struct OptionText {
    std::vector<std::string> names; // "--json"; empty for a positional
    std::string positional;
    std::string value; // "SIZE"; empty for a flag
    std::string description;
};

std::vector<OptionText> options_of(const CLI::App& command) {
    std::vector<OptionText> out;
    for (const CLI::Option* option : command.get_options()) {
        OptionText text{
            .names = {}, .positional = {}, .value = {}, .description = option->get_description()};
        for (const std::string& name : option->get_snames())
            text.names.push_back("-" + name);
        for (const std::string& name : option->get_lnames())
            text.names.push_back("--" + name);
        if (text.names.empty())
            text.positional = option->get_name(true);
        else if (option->get_items_expected_max() != 0)
            text.value = option->get_type_name().empty() ? "VALUE" : option->get_type_name();
        out.push_back(std::move(text));
    }
    return out;
}

std::vector<std::string> command_names(const CLI::App& app) {
    std::vector<std::string> names;
    for (const CLI::App* command : app.get_subcommands(nullptr))
        names.push_back(command->get_name());
    return names;
}

std::vector<std::string> option_names(const CLI::App& command) {
    std::vector<std::string> names;
    for (const OptionText& option : options_of(command))
        names.insert(names.end(), option.names.begin(), option.names.end());
    return names;
}

std::string bash_script(const CLI::App& app) {
    std::string cases;
    for (const CLI::App* command : app.get_subcommands(nullptr))
        cases += fmt::format("        {}) words='{}' ;;\n", command->get_name(),
                             fmt::join(option_names(*command), " "));
    return fmt::format(R"(# bash completion of safering
_safering() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W '{} {}' -- "$word"))
        return
    fi
    case $before in
        --backend) COMPREPLY=($(compgen -W '{}' -- "$word")); return ;;
    esac
    case ${{COMP_WORDS[1]}} in
        completion) COMPREPLY=($(compgen -W '{}' -- "$word")); return ;;
{}    esac
    case $word in
        -*) COMPREPLY=($(compgen -W "$words" -- "$word")) ;;
        *) COMPREPLY=($(compgen -f -- "$word")) ;;
    esac
}}
complete -o filenames -F _safering safering
)",
                       fmt::join(command_names(app), " "), fmt::join(option_names(app), " "),
                       fmt::join(backend_names, " "), fmt::join(shell_names, " "), cases);
}

// Inside single quotes of zsh and fish.
std::string quoted(std::string_view text, std::string_view escape_too) {
    std::string out;
    for (const char c : text)
        if (c == '\'')
            out += "'\\''";
        else if (c == '\n')
            out += ' ';
        else
            out += (escape_too.find(c) != std::string_view::npos ? "\\" : "") + std::string(1, c);
    return out;
}

std::string zsh_script(const CLI::App& app) {
    std::string commands;
    std::string cases;
    for (const CLI::App* command : app.get_subcommands(nullptr)) {
        commands += fmt::format("        '{}:{}'\n", command->get_name(),
                                quoted(command->get_description(), ":"));
        std::string arguments;
        for (const OptionText& option : options_of(*command))
            for (const std::string& name : option.names) {
                const std::string values =
                    name == "--backend"
                        ? fmt::format(":backend:({})", fmt::join(backend_names, " "))
                    : option.value.empty() ? ""
                                           : ":" + quoted(option.value, ":[]") + ":";
                arguments += fmt::format(" \\\n                '{}[{}]{}'", name,
                                         quoted(option.description, ":[]"), values);
            }
        const std::string rest = command->get_name() == "completion"
                                     ? fmt::format("'1:shell:({})'", fmt::join(shell_names, " "))
                                     : "'*:file:_files'";
        cases += fmt::format("        {})\n            _arguments{} \\\n                {} ;;\n",
                             command->get_name(), arguments, rest);
    }
    return fmt::format(R"(#compdef safering
_safering() {{
    local -a commands=(
{}    )
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    local command=$words[2]
    shift words
    (( CURRENT-- ))
    case $command in
{}    esac
}}
if [ "$funcstack[1]" = _safering ]; then
    _safering "$@"
else
    compdef _safering safering
fi
)",
                       commands, cases);
}

std::string fish_script(const CLI::App& app) {
    std::string out = "# fish completion of safering\n";
    for (const CLI::App* command : app.get_subcommands(nullptr)) {
        out += fmt::format("complete -c safering -n __fish_use_subcommand -f -a {} -d '{}'\n",
                           command->get_name(), quoted(command->get_description(), ""));
        for (const OptionText& option : options_of(*command))
            for (const std::string& name : option.names) {
                const std::string values =
                    name == "--backend" ? fmt::format(" -x -a '{}'", fmt::join(backend_names, " "))
                    : option.value.empty() ? ""
                                           : " -x";
                out += fmt::format(
                    "complete -c safering -n '__fish_seen_subcommand_from {}' -{} {} -d '{}'{}\n",
                    command->get_name(), name.starts_with("--") ? 'l' : 's',
                    name.substr(name.find_first_not_of('-')), quoted(option.description, ""),
                    values);
            }
    }
    return out +
           fmt::format(
               "complete -c safering -n '__fish_seen_subcommand_from completion' -f -a '{}'\n",
               fmt::join(shell_names, " "));
}

// Text of a man page: no word is a macro, and hyphens are those of the keyboard.
std::string troff(std::string_view text) {
    std::string out;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const bool line_begins = i == 0 || text[i - 1] == '\n';
        if (line_begins && (text[i] == '.' || text[i] == '\''))
            out += "\\&";
        if (text[i] == '\\')
            out += "\\e";
        else if (text[i] == '-')
            out += "\\-";
        else
            out += text[i];
    }
    return out;
}

std::string man_options(const CLI::App& command) {
    std::string out;
    for (const OptionText& option : options_of(command)) {
        std::vector<std::string> names;
        for (const std::string& name : option.names)
            names.push_back(fmt::format("\\fB{}\\fR", troff(name)));
        out +=
            fmt::format(".TP\n{}{}\n{}\n",
                        option.names.empty() ? fmt::format("\\fI{}\\fR", troff(option.positional))
                                             : fmt::format("{}", fmt::join(names, ", ")),
                        option.value.empty() ? "" : fmt::format(" \\fI{}\\fR", troff(option.value)),
                        troff(option.description));
    }
    return out;
}

// What is said below the options; examples as they are typed.
std::string man_footer(const std::string& footer) {
    constexpr std::string_view example = "Example: ";
    std::string out = ".PP\n";
    for (std::size_t begin = 0; begin < footer.size();) {
        const std::size_t end = std::min(footer.find('\n', begin), footer.size());
        const std::string line = footer.substr(begin, end - begin);
        begin = end + 1;
        if (line.starts_with(example))
            out +=
                fmt::format(".PP\n.RS 4\n.EX\n{}\n.EE\n.RE\n", troff(line.substr(example.size())));
        else
            out += troff(line) + "\n";
    }
    return out;
}

} // namespace

std::string completion_script(const CLI::App& app, const std::string& shell) {
    if (shell == "bash")
        return bash_script(app);
    return shell == "zsh" ? zsh_script(app) : fish_script(app);
}

std::string man_page(const CLI::App& app, const std::string& version) {
    std::string out = fmt::format(
        ".TH SAFERING 1 \"\" \"safering {}\" \"User Commands\"\n.SH NAME\nsafering \\- {}\n"
        ".SH SYNOPSIS\n.B safering\n\\fICOMMAND\\fR [\\fIOPTIONS\\fR] \\fIARGUMENTS\\fR\n"
        ".SH DESCRIPTION\n{}\n",
        version, troff(app.get_description()), troff(app.get_description()));
    out += ".SH OPTIONS\n" + man_options(app) + ".SH COMMANDS\n";
    for (const CLI::App* command : app.get_subcommands(nullptr)) {
        out += fmt::format(".SS \"safering {}\"\n{}.\n", command->get_name(),
                           troff(command->get_description()));
        out += man_options(*command) + man_footer(command->get_footer());
    }
    return out + ".SH EXIT STATUS\n" + man_footer(app.get_footer());
}

} // namespace safering::tools
