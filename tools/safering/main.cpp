// The command `safering`: looks at, checks, rewrites and measures checkpoints.
//
// Exit codes: 0 good, 1 a finding or a failure of the operation, 2 wrong use.

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <new>
#include <numeric>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <fmt/format.h>

#include "command.hpp"

namespace {

using namespace safering::tools;

// Before or after the arguments are understood, so that a script that asked for JSON
// gets it for mistakes too.
bool asks_for_json(int argc, char** argv) {
    for (int i = 1; i < argc; ++i)
        if (std::string_view(argv[i]) == "--json")
            return true;
    return false;
}

// How many letters must be changed, added or left out to make one word of the other.
std::size_t distance(std::string_view a, std::string_view b) {
    std::vector<std::size_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), std::size_t{0});
    for (std::size_t i = 0; i < a.size(); ++i) {
        std::size_t diagonal = std::exchange(row[0], i + 1);
        for (std::size_t j = 0; j < b.size(); ++j) {
            const std::size_t changed = diagonal + (a[i] == b[j] ? 0 : 1);
            diagonal = row[j + 1];
            row[j + 1] = std::min({changed, row[j] + 1, diagonal + 1});
        }
    }
    return row.back();
}

// The first word where none is a subcommand: what was meant, if one is near.
std::string unknown_command(const CLI::App& app, std::string_view word) {
    std::string out = fmt::format("there is no command \"{}\"", safering::escaped(word));
    for (const CLI::App* command : app.get_subcommands(nullptr))
        if (distance(word, command->get_name()) <= 2)
            return out + "; did you mean " + command->get_name() + "?";
    return out;
}

// What was meant by the first option that the command does not have, if one is near.
std::string near_option(const CLI::App& command, int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
        const std::string_view word =
            std::string_view(argv[i]).substr(0, std::string_view(argv[i]).find('='));
        if (!word.starts_with("--") || command.get_option_no_throw(std::string(word)) != nullptr)
            continue;
        for (const CLI::Option* option : command.get_options())
            for (const std::string& known : option->get_lnames())
                if (distance(word.substr(2), known) <= 2)
                    return "; did you mean --" + known + "?";
        break;
    }
    return {};
}

std::string commands_of(const CLI::App& app) {
    std::string out;
    for (const CLI::App* command : app.get_subcommands(nullptr))
        out += (out.empty() ? "" : ", ") + command->get_name();
    return out;
}

int report_wrong_use(const CLI::App& app, const CLI::ParseError& error, int argc, char** argv) {
    std::string message = error.what();
    std::ranges::replace(message, '\n', ' ');
    std::string usage = "safering --help";
    if (const auto chosen = app.get_subcommands(); !chosen.empty()) {
        usage = fmt::format("safering {} --help", chosen.front()->get_name());
        if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::ExtrasError))
            message += near_option(*chosen.front(), argc, argv);
    } else if (argc > 1 && argv[1][0] != '-') {
        message = unknown_command(app, argv[1]);
    } else {
        message = fmt::format("{}, expected a command: {}",
                              argc > 1 ? fmt::format("found \"{}\"", safering::escaped(argv[1]))
                                       : "found nothing",
                              commands_of(app));
    }
    fmt::print(stderr, "safering: {}; try: {}\n", message, usage);
    if (asks_for_json(argc, argv))
        print_json({{"error", {{"message", message}, {"category", "usage"}, {"try", usage}}}});
    return exit_wrong_use;
}

// A file that is opened must not become the standard output that somebody closed: what is reported would be written
// into a checkpoint. Reports to nowhere fail, warnings are lost.
void occupy_standard_descriptors() {
    constexpr int modes[] = {O_WRONLY, O_RDONLY, O_WRONLY};
    for (int descriptor = 0; descriptor < 3; ++descriptor)
        if (::fcntl(descriptor, F_GETFD) < 0 && errno == EBADF)
            (void)::open("/dev/null", modes[descriptor]); // the lowest that is free: this one
}

int run(int argc, char** argv) {
    CLI::App app{"Looks at, checks, rewrites and measures checkpoints of safetensors files."};
    app.name("safering");
    app.set_version_flag("--version", std::string("safering " SAFERING_VERSION));
    app.require_subcommand(1);
    app.footer("Exit codes: 0 good, 1 a finding or a failure, 2 wrong use.\n"
               "Example: safering verify /checkpoints/step-1000");
    CommonOptions common;
    Action action;
    add_probe(app, common, action);
    add_inspect(app, common, action);
    add_verify(app, common, action);
    add_diff(app, common, action);
    add_list(app, common, action);
    add_prune(app, common, action);
    add_recover(app, common, action);
    add_convert(app, common, action);
    add_bench(app, common, action);
    add_completion(app, common, action);
    add_man(app, common, action);

    try {
        app.parse(argc, argv);
    } catch (const CLI::Success& help_or_version) {
        return app.exit(help_or_version);
    } catch (const CLI::ParseError& error) {
        return report_wrong_use(app, error, argc, argv);
    }

    try {
        return action();
    } catch (const safering::Exception& exception) {
        return report_error(exception.error(), common.json);
    } catch (const std::bad_alloc&) {
        return report_error({.code = make_error_code(std::errc::not_enough_memory)}, common.json);
    }
}

} // namespace

int main(int argc, char** argv) {
    occupy_standard_descriptors();
    int code = exit_good;
    bool written = true;
    try {
        code = run(argc, argv);
    } catch (const std::system_error&) { // of fmt::print
        written = false;
    }
    // A report that did not reach its reader (a full disk behind a
    // redirection) is a failure as well.
    if (std::fflush(stdout) != 0 || std::ferror(stdout) || !written) {
        std::fputs("safering: standard output could not be written\n", stderr);
        return exit_failure;
    }
    return code;
}
