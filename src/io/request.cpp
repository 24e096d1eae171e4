#include <safering/request.hpp>

#include <new>

namespace safering {

std::string_view name(Opcode op) {
    switch (op) {
    case Opcode::open: return "open";
    case Opcode::close: return "close";
    case Opcode::allocate: return "allocate";
    case Opcode::read: return "read";
    case Opcode::write: return "write";
    case Opcode::fsync: return "fsync";
    case Opcode::truncate: return "truncate";
    case Opcode::rename: return "rename";
    case Opcode::unlink: return "unlink";
    case Opcode::make_directory: return "make directory";
    case Opcode::remove_directory: return "remove directory";
    case Opcode::sync_directory: return "sync directory";
    case Opcode::stat: return "stat";
    case Opcode::list: return "list";
    }
    return "unknown operation";
}

namespace {

Error in_words(const Request& request, const Completion& completion, std::string file_name) {
    Error error{.code = completion.error, .operation = std::string(name(request.op))};
    error.file = request.path.empty() ? std::move(file_name) : request.path;
    if (request.op == Opcode::rename)
        error.detail = "to " + escaped(request.new_path);
    if (request.op == Opcode::read || request.op == Opcode::write ||
        request.op == Opcode::allocate) {
        error.offset = request.offset;
        error.length = request.length;
    }
    if (completion.error == Errc::io_unexpected_end)
        error.detail = "expected " +
                       std::to_string(request.minimum == 0 ? request.length : request.minimum) +
                       " bytes, found " + std::to_string(completion.result);
    return error;
}

} // namespace

Error to_error(const Request& request, const Completion& completion, std::string file_name) {
    try {
        return in_words(request, completion, std::move(file_name));
    } catch (const std::bad_alloc&) {
        return {.code = completion.error};
    }
}

} // namespace safering
