#include "log_editor.hpp"

#include <algorithm>

namespace safering::test {

namespace {

bool matches(const SimulatedDisk::Record& record, const LogEditor::Which& which) {
    return record.op == which.op && record.path.ends_with(which.path_ends);
}

} // namespace

LogEditor::Log::iterator LogEditor::find(const Which& which) {
    std::vector<Log::iterator> found;
    for (auto record = log().begin(); record != log().end(); ++record)
        if (matches(*record, which))
            found.push_back(record);
    if (found.size() <= which.nth)
        throw std::logic_error("the log of \"" + scenario_.name + "\" has no such " +
                               std::string(name(which.op)) + " of " + std::string(which.path_ends));
    return found[which.nth];
}

LogEditor& LogEditor::drop(const Which& which) {
    log().erase(find(which));
    scenario_.reported_at -= 1;
    return *this;
}

LogEditor& LogEditor::drop_all(const Which& which) {
    (void)find(which);
    const std::size_t before = log().size();
    std::erase_if(log(), [&](const auto& record) { return matches(record, which); });
    scenario_.reported_at -= before - log().size();
    return *this;
}

LogEditor& LogEditor::move_before(const Which& moved, const Which& other) {
    const auto from = find(moved);
    const auto to = find(other);
    if (from <= to)
        throw std::logic_error("it comes before already");
    std::rotate(to, from, from + 1);
    return *this;
}

LogEditor& LogEditor::move_behind_report(const Which& moved) {
    const auto from = find(moved);
    std::rotate(from, from + 1, log().end());
    scenario_.reported_at -= 1;
    return *this;
}

LogEditor& LogEditor::truncate_from(const Which& which) {
    log().erase(find(which), log().end());
    scenario_.reported_at = log().size();
    return *this;
}

LogEditor& LogEditor::append(SimulatedDisk::Record record) {
    log().push_back(std::move(record));
    scenario_.reported_at = log().size();
    return *this;
}

LogEditor& LogEditor::insert_before(const Which& which, SimulatedDisk::Record record) {
    log().insert(find(which), std::move(record));
    scenario_.reported_at += 1;
    return *this;
}

} // namespace safering::test
