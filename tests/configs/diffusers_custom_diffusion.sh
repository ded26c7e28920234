accelerate launch train_custom_diffusion.py \
  --pretrained_model_name_or_path="CompVis/stable-diffusion-v1-4" \
  --instance_data_dir="teapot" --class_data_dir="real teapots" --real_prior \
  --output_dir="teapot model" --with_prior_preservation --prior_loss_weight=1.0 --num_class_images=150 \
  --class_prompt="teapot" --instance_prompt="photo of a <new1> teapot" \
  --modifier_token "<new1>" --initializer_token "ktn" --freeze_model crossattn \
  --resolution=512 --train_batch_size=2 --gradient_accumulation_steps=1 \
  --learning_rate=1e-5 --scale_lr --lr_warmup_steps=0 --max_train_steps=250 \
  --hflip --center_crop --validation_prompt="<new1> teapot on a table" --no_safe_serialization
