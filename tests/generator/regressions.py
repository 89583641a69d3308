"""Programs that broke a law once, as small as they could be made; the name says what was wrong."""

from __future__ import annotations

from tests.generator.program import Op, Program

SHUT = (
    Op("transposed", of=3, other=3, size=3),
    Op("shuffle", other=4, size=1, variant=1),
    Op("strided", of=1, other=3, size=3),
    Op("strided", other=2, size=3, variant=2),
    Op("mask", other=4, size=3, variant=1),
    Op("functional", other=1, variant=3),
    Op("pool", of=1, other=2, variant=2),
    Op("add", of=3, other=1, size=3, variant=1),
    Op("shuffle", of=2, other=4, size=3, variant=1),
    Op("bottleneck", of=1, other=2, size=2, variant=3),
)
"""What ends in a ReLU that lets nothing through."""

REGRESSIONS: dict[str, Program] = {
    "a_network_that_multiplies_nothing_was_planned": Program((Op("conv"), Op("conv"), Op("norm", of=3)), "raw"),
    "a_norm_was_dropped_before_a_mean": Program((Op("norm", variant=2),)),
    "a_weight_standardized_by_hand_disagreed_with_itself": Program((Op("functional", variant=1),)),
    "a_parametrized_weight_was_in_no_group": Program((Op("functional", variant=3),)),
    "of_two_slices_one_was_repaired": Program((Op("split", size=3, variant=2),)),
    "axes_of_one_channel_were_not_tied": Program((Op("conv"), Op("chunk", size=1), Op("chunk", variant=1))),
    "one_layout_did_not_serve_every_plan": Program(
        (Op("shuffle", size=2), Op("conv"), Op("bottleneck", of=1), Op("transposed"), Op("transposed"))
    ),
    "rolled_channels_met_in_another_order": Program(
        (Op("concatenate"), Op("reorder", size=1, variant=1), Op("inverted"))
    ),
    "groups_of_a_literal_number_grew_unevenly": Program((Op("groups_apart"),)),
    "the_output_depended_on_the_input_alone": Program((Op("add"), Op("multiply", of=2)), "raw"),
    "a_piece_grew_that_the_proof_left_alone": Program(
        (Op("norm", of=1, size=2, variant=3), Op("squeeze_excite"), Op("conv", of=3, other=1, variant=3), Op("chunk"))
    ),
    "a_piece_lost_all_its_channels": Program(
        (
            Op("squeeze_excite"),
            Op("strided", of=1, variant=2),
            Op("squeeze_excite", other=1, size=3, variant=2),
            Op("conv", of=3, other=1, variant=3),
            Op("chunk"),
        )
    ),
    "a_weight_normed_convolution_was_in_no_group": Program(
        (Op("functional", other=4, variant=3), Op("functional", other=5)), "tuple"
    ),
    "a_layer_norm_of_one_channel_did_not_follow": Program(
        (
            Op("conv", of=3, other=1, size=1, variant=3),
            Op("option_a", other=5, size=3, variant=1),
            Op("mask", size=3, variant=2),
            Op("grouped", size=1, variant=3),
            Op("squeeze_excite", other=3, size=3, variant=3),
            Op("reorder", of=2, size=3, variant=1),
            Op("norm", other=1, size=1, variant=3),
        ),
        "tuple",
    ),
    "pixels_of_a_channel_were_shuffled_among_themselves": Program(
        (
            Op("squeeze_excite", other=2, variant=3),
            Op("transposed", other=2, size=1),
            Op("pixels", size=1, variant=1),
            Op("functional", of=3, other=4, size=3),
            Op("again", of=1, other=3, size=2),
            Op("dropout", of=1, other=1, size=1, variant=3),
            Op("shuffle", of=3, other=3, size=2),
        )
    ),
    "two_runs_asked_different_questions_of_a_broadcast": Program(
        (Op("groups_apart", size=2, variant=1), Op("inverted", other=5))
    ),
    "a_batch_norm_of_two_values_moves_no_scale": Program(
        (
            Op("inverted", other=2),
            Op("mask", size=3, variant=2),
            Op("norm_by_hand", other=3, size=3, variant=1),
            Op("pixels", other=3, size=3, variant=2),
            Op("pixels", other=3, size=1, variant=2),
            Op("depthwise", other=1, variant=2),
            Op("groups_apart", of=3, other=5, variant=3),
            Op("merge", of=3, other=1, size=1, variant=3),
            Op("strided", of=1, other=1, size=2, variant=2),
            Op("norm", other=2, size=1),
        )
    ),
    "parts_of_unequal_steps_had_no_legal_width": Program(
        (
            Op("norm_by_hand", other=5, size=3, variant=1),
            Op("functional", other=2, variant=3),
            Op("grouped", of=3, other=2, size=2, variant=3),
            Op("shuffle", of=3, other=1, size=1, variant=2),
            Op("grouped", other=4, variant=1),
            Op("layer_scale", other=4, size=3, variant=1),
            Op("dense", other=1),
            Op("depthwise", other=5, size=1),
            Op("fold", of=3, other=3),
            Op("pixels", other=1, size=2, variant=3),
            Op("reorder", of=3, size=3, variant=2),
        )
    ),
    "a_piece_of_one_channel_became_two_in_an_output": Program(
        ops=(
            Op("option_a", of=2, size=1),
            Op("strided", other=1, variant=2),
            Op("project", other=3, size=3, variant=3),
            Op("option_a", of=2, other=2, size=1, variant=3),
            Op("split", of=2, other=1, size=2, variant=1),
        ),
        end="raw",
    ),
    "copies_of_a_channel_that_is_cut_out_alone_had_no_reader": Program(
        ops=(Op("split", other=2, variant=1), Op("mask", of=3, other=1, size=2, variant=3)), end="tuple"
    ),
    "one_channel_was_normalized_as_two": Program(
        ops=(
            Op("grouped", of=1, other=1, variant=2),
            Op("groups_apart", other=2, size=3, variant=1),
            Op("multiply", size=3, variant=1),
            Op("to_tokens", of=2, other=1, size=1),
            Op("dropout", other=5, size=1),
            Op("project", of=2, other=4, variant=1),
            Op("norm_by_hand", size=3, variant=2),
        ),
        end="tuple",
    ),
    "a_chunk_of_one_channel_was_summed_as_two": Program(
        ops=(
            Op("squeeze_excite", other=4),
            Op("multiply", of=2, other=5, size=1),
            Op("transposed", of=3, other=4, size=2),
            Op("groups_apart", of=3, other=2, size=3),
            Op("add", other=5, variant=3),
            Op("chunk", of=1, other=1),
            Op("groups_apart", of=1, other=1, size=2, variant=1),
        ),
        end="tuple",
    ),
    "an_einsum_over_one_channel_was_counted_otherwise": Program(
        ops=(
            Op("inverted", of=2, other=2, size=2, variant=3),
            Op("upsample", of=2, other=5, size=2, variant=1),
            Op("activation", of=1, other=4, size=2, variant=3),
            Op("strided", of=3, other=3, variant=3),
            Op("pixels", size=1),
            Op("functional", other=1, size=3, variant=2),
        ),
        end="tuple",
    ),
    "three_operands_met_in_two_orders": Program(
        ops=(
            Op("depthwise", other=3, size=2, variant=2),
            Op("shuffle", other=1, size=2),
            Op("multiply", other=2, size=2, variant=1),
            Op("strided", of=3, other=2, size=3, variant=3),
            Op("bottleneck", of=1, other=3, variant=2),
            Op("upsample", of=1, other=1, size=1),
            Op("mask", of=2, other=1, size=1, variant=2),
        ),
        end="tuple",
    ),
    "only_a_mean_felt_a_channel_behind_a_shut_relu": Program(
        ops=(
            *SHUT,
            Op("transposed", other=2, size=2, variant=1),
            Op("to_vector", other=5, size=2, variant=1),
        ),
        end="raw",
    ),
    "a_gate_met_another_order_behind_a_shuffle": Program(
        ops=(
            Op("squeeze_excite", of=2, other=2, size=2, variant=1),
            Op("shuffle", of=3, other=1, size=1, variant=2),
            Op("squeeze_excite", size=2),
            Op("strided", of=2, other=4, size=3, variant=3),
            Op("conv", of=2, other=3, size=3, variant=2),
            Op("pool", of=2, other=4, size=1),
            Op("bottleneck", of=3, other=5, variant=2),
            Op("to_tokens", other=2, size=1, variant=2),
        ),
        end="raw",
    ),
    "an_operand_was_cut_to_the_length_of_another": Program(
        ops=(
            Op("functional", other=5, size=3, variant=3),
            Op("split", other=2, size=1, variant=3),
            Op("activation", of=3, variant=2),
            Op("fold", other=1, size=2, variant=1),
            Op("activation", of=2, other=1, variant=1),
            Op("shuffle", of=3, other=1, size=1, variant=3),
            Op("dense", of=1, other=3, variant=3),
            Op("inverted", of=1, other=1, size=1, variant=3),
        ),
        end="raw",
    ),
    "one_channel_was_left_between_two_shuffles_of_pixels": Program(
        (
            Op("norm_by_hand", of=1, size=1, variant=1),
            Op("activation", of=1, other=4, variant=2),
            Op("add", size=3, variant=2),
            Op("pixels", of=3, other=1, size=2, variant=1),
            Op("chunk", of=2, other=3, size=2, variant=2),
            Op("pixels", other=3, variant=3),
        ),
        "joined",
    ),
    "one_channel_was_left_where_space_is_folded": Program(
        (
            Op("pixels", other=2, size=2, variant=1),
            Op("norm", of=1, other=4, variant=2),
            Op("to_vector", other=1, size=1, variant=2),
            Op("to_tokens", of=1, other=4, size=1, variant=3),
            Op("multiply", of=1, other=3),
        ),
        "joined",
    ),
    "only_a_maximum_felt_a_piece": Program(
        (
            Op("squeeze_excite", other=4),
            Op("strided", of=2, other=3, size=1, variant=1),
            Op("split", other=4, variant=3),
            Op("mask", of=3, size=1, variant=1),
            Op("multiply", of=2, other=5, size=1),
            Op("transposed", of=3, other=4, size=2),
            Op("groups_apart", of=3, other=2, size=3),
        ),
        "tuple",
    ),
    "only_a_mean_felt_a_channel_whose_flattened_reader_was_shut": Program(
        ops=(
            *SHUT,
            Op("learned", of=1, other=2, size=3, variant=2),
            Op("transposed", other=2, size=2, variant=1),
            Op("token_norm", other=2, variant=3),
            Op("attention", size=2, variant=3),
            Op("pool", of=3, size=2, variant=3),
            Op("attention", of=3),
            Op("vector_norm", other=2, size=3),
            Op("tokens_to_vector", of=2, other=3, variant=1),
            Op("upsample", other=1, size=2, variant=1),
            Op("to_vector", other=5, size=2, variant=1),
            Op("squeeze_excite", of=1, other=1, size=1, variant=1),
            Op("dense", size=2, variant=2),
            Op("vector_gated", of=3, other=3, variant=2),
        ),
        end="raw",
    ),
    "one_channel_was_left_three_times_over": Program(
        (
            Op("activation", of=1, other=2, size=1, variant=2),
            Op("conv", other=4),
            Op("shuffle", other=1, size=2, variant=3),
            Op("activation", of=1, other=2, size=1, variant=1),
            Op("project", other=1, size=3),
            Op("add", other=3, variant=2),
            Op("concatenate", of=1, other=4, size=3, variant=3),
            Op("to_vector", other=5, size=3, variant=1),
        ),
        "raw",
    ),
    "the_one_channel_was_picked_by_an_index": Program(
        (
            Op("to_vector", of=2, other=2, size=2, variant=3),
            Op("mask", other=5, size=1, variant=2),
            Op("reorder", other=2, size=2, variant=3),
        ),
        "tuple",
    ),
    "a_weight_that_was_computed_became_a_parameter": Program(
        (Op("functional", variant=1), Op("multiply", variant=2), Op("layer_scale", variant=1)), "raw"
    ),
    "a_kernel_that_nobody_trains_had_no_name_to_be_quantized_by": Program((Op("conv", size=2), Op("fixed"))),
    "a_kernel_that_the_graph_makes_had_no_name_to_be_quantized_by": Program((Op("conv"), Op("fixed", variant=3))),
    "batches_were_counted_by_a_norm_that_runs_twice_and_by_the_graph": Program(
        (
            Op("mid_attention", size=1),
            Op("dense", other=5),
            Op("again", other=0),
            Op("by_mode", other=1, variant=2),
        ),
        "dict",
    ),
    "an_exported_graph_was_taken_for_one_changed_by_hand": Program(
        (
            Op("computed_weight", of=3, other=1),
            Op("groups_apart", other=5, variant=3),
            Op("option_a", other=3, variant=1),
            Op("fold"),
            Op("norm", of=2, other=1, size=2, variant=2),
            Op("mid_attention", other=2, size=2),
            Op("conv", of=1, other=3, variant=2),
            Op("grouped", of=3, other=1, variant=1),
        ),
        "raw",
        "dict",
    ),
    "an_attribute_that_is_returned_had_no_source_line": Program(
        (
            Op("fold", of=3, other=2, size=1, variant=3),
            Op("mask", of=2, other=2, variant=2),
            Op("complex_parts", of=2, size=3),
        ),
        "raw",
        "optional",
    ),
    "an_exported_product_over_one_channel_was_not_counted": Program(
        (Op("mid_attention", size=1), Op("mid_attention", of=1, other=2, size=2, variant=2)), "joined", "dict"
    ),
    "the_images_own_channels_were_shuffled_by_chance": Program(
        (
            Op("strided", of=3, other=1, variant=2),
            Op("dense", of=2, other=1, size=1, variant=2),
            Op("shuffle", size=2),
            Op("channel_softmax", size=3, variant=1),
            Op("squeeze_excite", other=5, variant=3),
        ),
        "tuple",
    ),
    "numbers_were_drawn_that_nobody_read": Program(
        (
            Op("by_mode", other=2, variant=3),
            Op("complex_parts", other=2, variant=3),
            Op("dropout", other=5, size=2),
            Op("norm_by_hand", other=4, size=2),
            Op("chunk", of=3, other=4, variant=1),
            Op("fixed", of=3, size=2),
            Op("upsample", other=4, size=1, variant=2),
        ),
        "raw",
    ),
    "copies_behind_the_mean_of_an_instance_norm_were_told_apart_by_rounding": Program(
        (
            Op("norm", other=1, size=2, variant=3),
            Op("reorder", of=3, other=5, variant=3),
            Op("concatenate", of=3, size=2, variant=1),
            Op("split", of=2, other=2, size=2, variant=1),
            Op("dropout", of=1, other=4, size=2, variant=2),
            Op("norm", of=1, other=5, size=2, variant=2),
        ),
        "auxiliary",
    ),
    "a_constant_that_no_state_holds_was_parted_by_the_seed": Program(
        (
            Op("computed_weight", of=1, other=3),
            Op("mask", of=3, other=1, size=3, variant=2),
            Op("fixed", other=5, size=2, variant=3),
            Op("groups_apart", of=2, size=3),
            Op("norm", of=2, other=3, size=3, variant=2),
        ),
        "tuple",
    ),
    "what_was_gathered_had_a_range_of_its_own_to_be_added": Program(
        (
            Op("strided", of=1, other=5, size=3, variant=2),
            Op("complex_parts", of=3, size=1, variant=3),
            Op("computed_weight", other=3),
            Op("dense", of=3, other=5, size=1),
            Op("response", of=3, other=5, size=2, variant=2),
            Op("concatenate", of=2, other=1, size=1, variant=3),
            Op("one_gate", other=1, size=3, variant=3),
            Op("groups_apart", size=3, variant=3),
        ),
        "joined",
        "dict",
    ),
    "a_direction_of_zeros_has_no_length": Program(
        (
            Op("computed_weight", of=3, other=3),
            Op("to_vector", other=2, variant=2),
            Op("own_weight", of=1, other=5, size=2),
            Op("transposed", other=2, size=1, variant=2),
            Op("mask", other=3, size=1, variant=1),
            Op("vector_cosine", of=1, size=2, variant=3),
        ),
        "dict",
        "optional",
    ),
    "a_weight_of_negative_length_is_read_twice": Program(
        (
            Op("transposed", of=3, other=1),
            Op("dense", other=1, size=1, variant=2),
            Op("fixed", other=2),
            Op("norm", other=4, variant=3),
            Op("norm_by_hand", other=5, size=3, variant=3),
            Op("activation", other=4, variant=1),
            Op("own_weight", of=1, size=1, variant=2),
            Op("channel_softmax", of=1, size=3, variant=1),
            Op("again", of=2, other=4, variant=3),
        ),
        "dict",
        "optional",
    ),
    "values_of_more_heads_than_queries_were_not_counted": Program(
        (
            Op("strided", of=3, other=3, size=2, variant=1),
            Op("mask", other=1, size=3, variant=2),
            Op("channel_softmax", other=5, size=1, variant=3),
            Op("to_tokens", of=1, other=2, size=3, variant=2),
            Op("attention", other=5, size=2, variant=2),
        ),
        "tuple",
        "tensor",
    ),
    "of_channels_that_come_twice_one_was_taken_for_the_other": Program(
        (
            Op("to_vector", of=2, other=5, size=3),
            Op("from_vector", other=4, variant=2),
            Op("channel_softmax", of=1, other=3, size=3, variant=1),
            Op("one_gate", other=1, size=2, variant=3),
            Op("chunk", of=2, other=4, size=3, variant=1),
            Op("groups_apart", of=3, other=4),
            Op("shuffle", of=1, other=1, size=3),
        ),
        "dict",
        "optional",
    ),
    "an_odd_number_of_channels_was_offered_that_no_view_folds_into_the_batch": Program(
        (
            Op("shuffle", other=3, size=1, variant=2),
            Op("fold", other=3, size=1, variant=2),
            Op("computed_weight", of=2, other=3, size=1, variant=2),
            Op("project", other=1, size=1, variant=1),
            Op("channel_softmax", of=2, other=3, size=1, variant=1),
            Op("functional", other=5, size=3, variant=3),
        ),
        takes="dict",
    ),
    "places_that_one_channel_alone_does_not_have": Program(
        (
            Op("split", other=1, size=1, variant=1),
            Op("concatenate", of=3, other=5, size=2, variant=1),
            Op("upsample", of=2, other=5, variant=2),
            Op("fold", other=3, size=1),
            Op("mask", other=2, size=2, variant=2),
            Op("pixels", other=4, size=3, variant=1),
            Op("fold", of=3, other=2, size=1, variant=2),
            Op("shuffle", of=2, other=5, variant=2),
            Op("inverted", of=2, other=3, size=2, variant=1),
            Op("layer_scale", other=3, size=1),
            Op("multiply", other=5, size=1, variant=2),
        ),
        takes="dict",
    ),
}
"""What broke -> the program."""
