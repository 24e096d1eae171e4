// The command `safering`: looks at, checks, rewrites and measures checkpoints.
//
// Exit codes: 0 good, 1 a finding or a failure of the operation, 2 wrong use.

#include <cstdio>
#include <new>
#include <string_view>

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

int report_wrong_use(const CLI::ParseError& error, bool json) {
    fmt::print(stderr, "safering: {}\nRun with --help for the usage.\n", error.what());
    if (json)
        print_json({{"error", {{"message", error.what()}, {"category", "usage"}}}});
    return exit_wrong_use;
}

} // namespace

int main(int argc, char** argv) {
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
    add_convert(app, common, action);
    add_bench(app, common, action);

    try {
        app.parse(argc, argv);
    } catch (const CLI::Success& help_or_version) {
        return app.exit(help_or_version);
    } catch (const CLI::ParseError& error) {
        return report_wrong_use(error, asks_for_json(argc, argv));
    }

    ExitCode code = exit_good;
    try {
        code = action();
    } catch (const safering::Exception& exception) {
        code = report_error(exception.error(), common.json);
    } catch (const std::bad_alloc&) {
        code = report_error({.code = make_error_code(std::errc::not_enough_memory)}, common.json);
    }
    // A report that did not reach its reader (a full disk behind a
    // redirection) is a failure as well.
    if (std::fflush(stdout) != 0 || std::ferror(stdout)) {
        fmt::print(stderr, "safering: standard output could not be written\n");
        return exit_failure;
    }
    return code;
}
