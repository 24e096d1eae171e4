#include "checkpoint/convert_target.hpp"

#include <algorithm>
#include <optional>
#include <regex>

#include <fmt/format.h>
#include <fnmatch.h>

#include "plan/float_convert.hpp"

namespace safering::checkpoint {

namespace {

std::unexpected<Error> bad_name(std::string tensor, std::string detail) {
    return std::unexpected(Error{.code = Errc::plan_bad_name,
                                 .operation = "rename tensors",
                                 .tensor = std::move(tensor),
                                 .detail = std::move(detail)});
}

class Rule {
  public:
    static Result<Rule> make(const Rename& rename) {
        Rule rule;
        rule.rename_ = &rename;
        if (rename.from.empty())
            return bad_name({}, "a rule looks for nothing; give the text to be replaced");
        if (rename.kind != Rename::Kind::prefix) {
            try {
                rule.regex_.emplace(rename.from);
            } catch (const std::regex_error& error) {
                return bad_name({}, fmt::format("\"{}\" is no regular expression: {}",
                                                escaped(rename.from), error.what()));
            }
        }
        return rule;
    }

    Result<void> apply(std::string& name) {
        if (!regex_) {
            if (name.starts_with(rename_->from)) {
                name.replace(0, rename_->from.size(), rename_->to);
                used_ = true;
            }
            return {};
        }
        try {
            if (!std::regex_search(name, *regex_))
                return {};
            name = std::regex_replace(name, *regex_, rename_->to,
                                      rename_->kind == Rename::Kind::regex_once
                                          ? std::regex_constants::format_first_only
                                          : std::regex_constants::format_default);
        } catch (const std::regex_error& error) { // too complex for this name
            return bad_name(name, fmt::format("\"{}\" cannot be looked for in it: {}",
                                              escaped(rename_->from), error.what()));
        }
        used_ = true;
        return {};
    }

    Result<void> check_used() const {
        if (used_)
            return {};
        return bad_name({},
                        fmt::format("\"{}\" is in no tensor's name{}; `safering inspect` shows "
                                    "the names",
                                    escaped(rename_->from), regex_ ? "" : ", at its beginning"));
    }

  private:
    const Rename* rename_ = nullptr;
    std::optional<std::regex> regex_;
    bool used_ = false;
};

class DtypeChoice {
  public:
    DtypeChoice(const Metadata& source, const ConvertOptions& options)
        : source_(source), options_(options) {}

    Dtype of(const TensorName& fqn, Dtype stored) {
        if (!options_.dtype || stored == *options_.dtype)
            return stored;
        const auto match = [&](const std::string& glob) {
            return fnmatch(glob.c_str(), fqn.c_str(), 0) == 0;
        };
        if (plan::is_plain_float(stored))
            return std::ranges::any_of(options_.keep_dtype, match) || is_scale(fqn)
                       ? stored
                       : *options_.dtype;
        if (bits(stored) < 16 && name(stored).starts_with('F'))
            ++scaled_;
        return stored;
    }
    std::vector<std::string> notes() const {
        if (scaled_ == 0)
            return {};
        return {fmt::format("{} tensors of 8 bits or fewer stay as they are, and so do their "
                            "scales, on which it depends what they stand for",
                            scaled_)};
    }

  private:
    // Of a weight with fewer than 16 bits, as DeepSeek, compressed-tensors and gpt-oss name it.
    bool is_scale(std::string_view fqn) const {
        for (const std::string_view suffix : {"_scale_inv", "_scale", "_scales"}) {
            if (!fqn.ends_with(suffix))
                continue;
            const std::string weight(fqn.substr(0, fqn.size() - suffix.size()));
            for (const std::string& name : {weight, weight + "_blocks"})
                if (const auto found = source_.tensors.find(name);
                    found != source_.tensors.end() && bits(found->second.dtype) < 16)
                    return true;
        }
        return false;
    }

    const Metadata& source_;
    const ConvertOptions& options_;
    std::uint64_t scaled_ = 0;
};

} // namespace

ConvertTarget::Source ConvertTarget::source_of(std::string_view fqn, Dtype dtype) const {
    const auto found = sources.find(fqn);
    return found == sources.end() ? Source{std::string(fqn), dtype} : found->second;
}

Result<ConvertTarget> choose_target(const Metadata& source, const ConvertOptions& options) {
    if (options.dtype && !plan::is_plain_float(*options.dtype))
        return fail(Errc::plan_shape_mismatch, "convert",
                    fmt::format("{} is no dtype to convert to; F16, BF16, F32 and F64 are",
                                name(*options.dtype)));
    std::vector<Rule> rules;
    for (const Rename& rename : options.renames) {
        auto rule = Rule::make(rename);
        if (!rule)
            return std::unexpected(std::move(rule.error()));
        rules.push_back(std::move(*rule));
    }
    struct Tensor {
        std::string renamed;
        const TensorName* fqn;
        Dtype dtype;
        const TensorStorageMetadata* stored;
    };
    std::vector<Tensor> tensors;
    DtypeChoice choice(source, options);
    for (const auto& [fqn, stored] : source.tensors) {
        std::string renamed = fqn.str();
        for (Rule& rule : rules)
            if (auto applied = rule.apply(renamed); !applied)
                return std::unexpected(std::move(applied.error()));
        if (renamed.empty() && !fqn.empty())
            return bad_name(fqn.str(), "nothing would be left of its name");
        tensors.push_back({std::move(renamed), &fqn, choice.of(fqn, stored.dtype), &stored});
    }
    std::ranges::stable_sort(tensors, {}, &Tensor::renamed);
    const auto twice = std::ranges::adjacent_find(tensors, {}, &Tensor::renamed);
    if (twice != tensors.end())
        return bad_name(twice->renamed,
                        fmt::format("both \"{}\" and \"{}\" would get this name",
                                    escaped(*twice->fqn), escaped(*std::next(twice)->fqn)));
    ConvertTarget target;
    for (Tensor& tensor : tensors) {
        if (tensor.renamed != *tensor.fqn || tensor.dtype != tensor.stored->dtype)
            target.sources.try_emplace(tensor.renamed, tensor.fqn->str(), tensor.stored->dtype);
        target.widest =
            std::max<std::uint64_t>(target.widest, bits(tensor.stored->dtype) / bits(tensor.dtype));
        target.metadata.tensors.emplace_hint(
            target.metadata.tensors.end(), std::move(tensor.renamed),
            TensorStorageMetadata{.dtype = tensor.dtype, .size = tensor.stored->size});
    }
    for (const Rule& rule : rules)
        if (auto used = rule.check_used(); !used)
            return std::unexpected(std::move(used.error()));
    target.notes = choice.notes();
    return target;
}

} // namespace safering::checkpoint
